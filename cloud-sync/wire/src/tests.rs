//! What comes out of a batch is what went in, and nothing from outside breaks it.

use super::*;
use model::{Sketch, Value};
use proptest::prelude::*;

fn summary(start_us: Micros, values: &[Result<f64, String>]) -> Summary {
    let numbers: Vec<f64> = values.iter().filter_map(|value| value.clone().ok()).collect();
    let value = |value: &Result<f64, String>| match value {
        Ok(n) => Value::Number(*n),
        Err(text) => Value::Text(text.as_str().into()),
    };
    let mut summary = Summary::empty(start_us);
    if let (Some(first), Some(last)) = (values.first(), values.last()) {
        summary.first = (start_us + 17, value(first));
        summary.last = (start_us + 59_000_003, value(last));
    }
    summary.count = numbers.len() as u64;
    summary.texts = (values.len() - numbers.len()) as u64;
    summary.sum = numbers.iter().sum();
    let mean = summary.mean().unwrap_or(0.0);
    summary.m2 = numbers.iter().map(|n| (n - mean).powi(2)).sum();
    summary.min = numbers.iter().copied().fold(f64::INFINITY, f64::min);
    summary.max = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    summary.sketch = Sketch::of(numbers);
    summary
}

fn value() -> impl Strategy<Value = Result<f64, String>> {
    prop_oneof![
        6 => (10_000..10_400_i32).prop_map(|n| Ok(f64::from(n) / 10.0)),
        2 => (-1e6..1e6_f64).prop_map(Ok),
        1 => prop_oneof![Just(0.0), Just(1e300), Just(-1e-300), Just(-21.5)].prop_map(Ok),
        1 => "[a-zäß]{1,5}".prop_map(Err),
    ]
}

fn batch() -> impl Strategy<Value = Batch> {
    let window = (
        0..5_u32,
        0..10_000_i64,
        1..9_u64,
        prop::collection::btree_map("[a-d]", prop::collection::vec(value(), 0..8), 1..4),
    );
    prop::collection::vec(window, 0..40).prop_map(|rows| {
        let devices = (0..5).map(|n| Device {
            id: format!("device-{n}").into(),
            labels: (n % 2 == 0).then(|| BTreeMap::from([("site".into(), format!("north-{n}"))])),
        });
        let windows = rows.into_iter().map(|(device, minute, revision, metrics)| {
            let start_us = minute * 60_000_000;
            let metrics = metrics.iter().map(|(name, values)| (name.as_str().into(), summary(start_us, values)));
            Window { device, start_us, length_us: 60_000_000, revision, metrics: metrics.collect() }
        });
        let mut windows: Vec<Window> = windows.collect();
        windows.sort_by_key(|window| (window.device, window.start_us));
        windows.dedup_by_key(|window| (window.device, window.start_us));
        let removed =
            |metric: Option<&str>| Removed { device: "gone".into(), metric: metric.map(Into::into), revision: 1 << 32 };
        Batch { devices: devices.collect(), windows, removed: vec![removed(None), removed(Some("a"))] }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn batches_come_back_saying_the_same(batch in batch()) {
        let back = Batch::decode(&batch.encode()).unwrap();
        prop_assert_eq!(&back.devices, &batch.devices);
        prop_assert_eq!(back.windows.len(), batch.windows.len());
        for (back, sent) in back.windows.iter().zip(&batch.windows) {
            prop_assert_eq!(
                (back.device, back.start_us, back.length_us, back.revision, back.metrics.len()),
                (sent.device, sent.start_us, sent.length_us, sent.revision, sent.metrics.len())
            );
            for (name, summary) in &sent.metrics {
                let got = &back.metrics[name];
                prop_assert!(got.says_the_same(summary), "{:?} {:?}", got, summary);
                let (Some(got), Some(want)) = (got.stddev(), summary.stddev()) else { continue };
                let largest = summary.min.abs().max(summary.max.abs());
                prop_assert!(got == want || (got - want).abs() <= 1e-10 * largest, "{} {}", got, want);
            }
        }
    }

    #[test]
    fn hostile_bytes_are_errors(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Batch::decode(&bytes).is_err());
        // Below the frame anything may be a message; it must only not panic.
        let framed = zstd::encode_all(&bytes[..], 1).unwrap();
        let _ = Batch::decode(&framed);
    }

    #[test]
    fn damaged_columns_are_errors_or_windows(batch in batch(), at in any::<prop::sample::Index>(), with: u8) {
        let mut plain = columns::encode(&batch).encode_to_vec();
        if !plain.is_empty() {
            let at = at.index(plain.len());
            plain[at] = with;
        }
        let _ = Batch::decode(&zstd::encode_all(&plain[..], 1).unwrap());
    }
}

#[test]
fn a_bomb_is_refused() {
    let bomb = zstd::encode_all(&vec![0_u8; 200 << 20][..], 1).unwrap();
    assert!(bomb.len() < 1 << 20);
    assert!(matches!(Batch::decode(&bomb), Err(WireError::Frame(_))));
}

#[test]
fn a_summary_of_a_sensor_takes_a_few_bytes() {
    let mut windows = Vec::new();
    let mut metrics = 0;
    for device in 0..200_u32 {
        let values: Vec<f64> = (0..5).map(|n| f64::from((device * 7_919 + n * 104_729) % 3_000) / 10.0).collect();
        let of = |base: f64, step: f64| {
            let values: Vec<_> = (0..6_i32)
                .map(|i| Ok(((base + step * f64::from((i * i + device as i32) % 7)) * 100.0).round() / 100.0))
                .collect();
            summary(1_700_000_040_000_000, &values)
        };
        let own: BTreeMap<Arc<str>, Summary> =
            values.iter().enumerate().map(|(n, base)| (format!("metric-{n}").into(), of(*base, 0.07))).collect();
        metrics += own.len();
        windows.push(Window {
            device,
            start_us: 1_700_000_040_000_000,
            length_us: 60_000_000,
            revision: 5,
            metrics: own,
        });
    }
    let devices = (0..200).map(|n| Device { id: format!("sim-{n:05}").into(), labels: None }).collect();
    let bytes = Batch { devices, windows, ..Batch::default() }.encode().len();
    assert!(bytes < metrics * 25, "{bytes} bytes for {metrics} summaries");
}

/// One window of one device.
fn good() -> Batch {
    let metrics = BTreeMap::from([("t".into(), summary(60_000_000, &[Ok(1.5), Ok(2.5)]))]);
    let window = Window { device: 0, start_us: 60_000_000, length_us: 60_000_000, revision: 1, metrics };
    Batch { devices: vec![Device { id: "d".into(), labels: None }], windows: vec![window], ..Batch::default() }
}

#[test]
fn what_contradicts_itself_is_refused() {
    assert!(Batch::decode(&good().encode()).is_ok());
    type Spoil = fn(&mut Window);
    let spoiled: [(&str, Spoil); 5] = [
        ("more in the sketch than there are", |window| window.metrics.values_mut().for_each(|s| s.count = 1)),
        ("a minimum above the maximum", |window| {
            window.metrics.values_mut().for_each(|s| (s.min, s.max) = (0.1, -7e300))
        }),
        ("a start between windows", |window| window.start_us = 61_000_000),
        ("no metrics", |window| window.metrics.clear()),
        ("a revision beyond all numbers", |window| window.revision = u64::MAX),
    ];
    for (what, spoil) in spoiled {
        let mut batch = good();
        spoil(&mut batch.windows[0]);
        assert!(matches!(Batch::decode(&batch.encode()), Err(WireError::Inconsistent(_))), "{what}");
    }
    let mut many = good();
    for n in 2..12 {
        let window = Window { length_us: n * 60_000_000, start_us: 0, ..many.windows[0].clone() };
        many.windows.push(window);
    }
    assert!(Batch::decode(&many.encode()).is_err(), "too many lengths");
}

/// A kilobyte that unpacks to columns of millions of entries is refused before they are decoded, and asks for no
/// more memory than there is.
#[test]
fn what_a_few_bytes_become_is_counted_before_it_is_decoded() {
    let column = |field: u8, entries: usize| {
        let mut column = vec![field << 3 | 2];
        prost::encoding::encode_varint(entries as u64, &mut column);
        column.resize(column.len() + entries, 1);
        column
    };
    let message = |field: u8, body: Vec<u8>| {
        let mut message = vec![field << 3 | 2];
        prost::encoding::encode_varint(body.len() as u64, &mut message);
        message.extend(body);
        message
    };
    for plain in [
        message(2, column(1, 8 << 20)),
        message(3, column(2, 8 << 20)),
        message(3, message(9, message(2, column(4, 8 << 20)))),
        message(3, message(9, message(4, column(2, 24 << 20)))),
        message(3, message(10, column(2, 24 << 20))),
    ] {
        let packed = zstd::encode_all(&plain[..], 5).unwrap();
        assert!(packed.len() < 8_000, "{}", packed.len());
        assert_eq!(Batch::decode(&packed), Err(WireError::TooLarge));
        let (mut left, mut asked) = (20_usize << 20, 0);
        let decoded = Batch::decode_within(&packed, &mut |bytes| {
            asked += bytes;
            left.checked_sub(bytes).map(|rest| left = rest).is_some()
        });
        assert!(matches!(decoded, Err(WireError::Busy | WireError::TooLarge)), "{decoded:?}");
    }
    // What gateways send stays far below.
    let honest = good();
    let mut asked = 0;
    let decoded = Batch::decode_within(&honest.encode(), &mut |bytes| {
        asked += bytes;
        true
    });
    assert_eq!(decoded, Ok(honest));
    assert!(asked < 1 << 20, "{asked}");
}
