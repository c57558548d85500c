//! A disk that cannot sync any more: nothing is acknowledged, and the gateway says why it ends.

use gateway::app::App;
use gateway::config::Config;
use gateway::inside::Clock;
use tests::powercut::vfs;
use tokio_util::sync::CancellationToken;

#[test]
fn a_failed_fsync_acknowledges_nothing_more_and_ends_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.gateway.data_dir = directory.path().to_owned();
    config.mqtt.listen = String::new();
    config.coap.listen = String::new();
    config.http.listen = "127.0.0.1:0".into();
    vfs::record(true);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let app = runtime.block_on(App::build(config, Clock::system())).unwrap();
    let address = app.addresses().iter().find(|(name, _)| *name == "http").unwrap().1;
    let running = runtime.spawn(app.run(CancellationToken::new()));
    let post = |n: u32| {
        let body =
            format!(r#"{{"readings":[{{"device":"d","metric":"m","value":{n},"time":"2024-03-01T00:00:0{n}Z"}}]}}"#);
        let url = format!("http://{address}/v1/readings");
        ureq::post(url).content_type("application/json").send(body).map(|answer| answer.status().as_u16())
    };
    assert_eq!(post(1).unwrap(), 200);
    vfs::fail_syncs(true);
    let told = post(2);
    assert!(told.is_err(), "acknowledged without being on disk: {told:?}");
    let error = runtime.block_on(running).unwrap().unwrap_err().to_string();
    assert!(error.contains("cannot be written") && error.contains("nothing more is acknowledged"), "{error}");
    assert!(post(3).is_err(), "and it is gone");
    vfs::fail_syncs(false);
    vfs::record(false);
}
