module recorded

go 1.26

require github.com/influxdata/influxdb v1.13.2
