// Says what InfluxDB's own parser makes of line protocol: of the writes in a recorded session (FILE.jsonl), or of a
// file of lines (FILE.lp). For each point it prints {"measurement","tags","fields","time_ns"}, for each line that the
// parser refuses {"error"}.
//
//	go run . FILE > POINTS
package main

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/influxdata/influxdb/models"
)

type request struct {
	Path       string  `json:"path"`
	Body       *string `json:"body"`
	BodyBase64 string  `json:"body_base64"`
}

func (r request) bytes() []byte {
	if r.Body != nil {
		return []byte(*r.Body)
	}
	body, err := base64.StdEncoding.DecodeString(r.BodyBase64)
	check(err)
	reader, err := gzip.NewReader(bytes.NewReader(body))
	check(err)
	text, err := io.ReadAll(reader)
	check(err)
	return text
}

// As the parser names it.
func precision(query url.Values) string {
	switch p := query.Get("precision"); p {
	case "us", "microsecond":
		return "u"
	case "ns", "nanosecond", "":
		return "n"
	case "millisecond":
		return "ms"
	case "second":
		return "s"
	default:
		return p
	}
}

func quoted(text string) string {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	check(encoder.Encode(text))
	return strings.TrimSuffix(out.String(), "\n")
}

func value(v interface{}) string {
	switch v := v.(type) {
	case float64:
		text := strconv.FormatFloat(v, 'g', -1, 64)
		if !strings.ContainsAny(text, ".e") {
			text += ".0"
		}
		return text
	case string:
		return quoted(v)
	default:
		return fmt.Sprint(v)
	}
}

func show(point models.Point, unset time.Time) {
	var tags, fields []string
	for _, tag := range point.Tags() {
		tags = append(tags, quoted(string(tag.Key))+": "+quoted(string(tag.Value)))
	}
	for each := point.FieldIterator(); each.Next(); {
		var v interface{}
		var err error
		switch each.Type() {
		case models.Float:
			v, err = each.FloatValue()
		case models.Integer:
			v, err = each.IntegerValue()
		case models.Unsigned:
			v, err = each.UnsignedValue()
		case models.Boolean:
			v, err = each.BooleanValue()
		default:
			v = each.StringValue()
		}
		check(err)
		fields = append(fields, quoted(string(each.FieldKey()))+": "+value(v))
	}
	at := "null"
	if !point.Time().Equal(unset) {
		at = strconv.FormatInt(point.UnixNano(), 10)
	}
	fmt.Printf("{\"measurement\": %s, \"tags\": {%s}, \"fields\": {%s}, \"time_ns\": %s}\n",
		quoted(string(point.Name())), strings.Join(tags, ", "), strings.Join(fields, ", "), at)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func parse(body []byte, precision string) {
	unset := time.Unix(1, 0).UTC()
	points, err := models.ParsePointsWithPrecision(body, unset, precision)
	for _, point := range points {
		show(point, unset)
	}
	if err != nil {
		for _, line := range strings.Split(err.Error(), "\n") {
			fmt.Printf("{\"error\": %s}\n", quoted(line))
		}
	}
}

func main() {
	content, err := os.ReadFile(os.Args[1])
	check(err)
	if strings.HasSuffix(os.Args[1], ".lp") {
		parse(content, "n")
		return
	}
	for _, line := range bytes.Split(bytes.TrimSpace(content), []byte("\n")) {
		var r request
		check(json.Unmarshal(line, &r))
		target, err := url.Parse(r.Path)
		check(err)
		if strings.HasSuffix(target.Path, "/write") || strings.HasSuffix(target.Path, "/write_lp") {
			parse(r.bytes(), precision(target.Query()))
		}
	}
}
