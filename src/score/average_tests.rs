//! The rules of averaging, on counts small enough to follow by hand.

use super::super::{Empty, SurfaceScore, Surfaces, Unit};
use super::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A case of 100 voxels with the counts (TP, FP, FN) of classes 1, 2, …
fn case(id: &str, counts: &[(u64, u64, u64)]) -> CaseScore {
    let score = |&(tp, fp, fn_): &(u64, u64, u64)| ClassScore {
        counts: Counts { tp, fp, fn_, tn: 100 - tp - fp - fn_ },
        surface: None,
        over_thresholds: None,
    };
    let (tp, fp, fn_) = counts.iter().fold((0, 0, 0), |a, c| (a.0 + c.0, a.1 + c.1, a.2 + c.2));
    // Background: what is in neither, what was missed, what was invented.
    let background = (100 - tp - fp - fn_, fn_, fp);
    let classes = (1..).zip(counts).filter(|(_, c)| **c != (0, 0, 0)).map(|(class, c)| (class, score(c)));
    CaseScore {
        case: id.into(),
        reference_file: None,
        prediction_file: None,
        n_voxels: 100,
        unit: Unit::Mm,
        classes: classes.chain([(0, score(&background))]).collect(),
        sweep: None,
    }
}

fn report(cases: &[CaseScore], options: Options) -> Report {
    Report::from_cases(cases.to_vec(), &options).unwrap()
}

fn plain(empty: Empty) -> Options {
    Options { empty, surfaces: Surfaces::Skipped, ..Options::default() }
}

fn by(protocol: Protocol) -> Options {
    Options { protocol, ..plain(Empty::Nan) }
}

#[test]
fn four_corners_of_empty_masks_under_three_rules() {
    // TP, FP, FN of class 1 in a set where class 1 occurs elsewhere; the value under nan, one, zero.
    let corners = [
        ((0, 0, 0), [None, Some(1.0), Some(0.0)]),
        ((0, 5, 0), [Some(0.0); 3]),
        ((0, 0, 5), [Some(0.0); 3]),
        ((5, 0, 0), [Some(1.0); 3]),
    ];
    for (counts, expected) in corners {
        for (empty, expected) in Empty::ALL.into_iter().zip(expected) {
            let report = report(&[case("a", &[counts]), case("b", &[(4, 1, 1)])], plain(empty));
            let found = &report.metric_per_case[0].metrics[&1];
            assert_eq!((found.dice, found.iou), (expected, expected), "{counts:?} under {empty:?}");
            let mean = expected.map_or(0.8, |dice| (dice + 0.8) / 2.0);
            assert!((report.mdice.unwrap() - mean).abs() < 1e-12, "{counts:?} under {empty:?}");
            assert_eq!(report.n_undefined[&1].dice, usize::from(expected.is_none()));
            assert_eq!(report.n_absent[&1], usize::from(counts == (0, 0, 0)));
        }
    }
}

#[test]
fn means_run_over_cases_then_over_classes() {
    // Class 1: Dice 1 and 0.5 (2 · 2 / (4 + 4)); class 2 in the second case only: 0.8.
    let report = report(&[case("a", &[(3, 0, 0)]), case("b", &[(2, 2, 2), (4, 1, 1)])], plain(Empty::Nan));
    assert_eq!(report.mean[&1].dice, Some(0.75));
    assert_eq!(report.mean[&2].dice, Some(0.8));
    assert!((report.mdice.unwrap() - 0.775).abs() < 1e-12);
    assert_eq!(report.foreground_mean.dice, report.mdice);
    // Pooled class 1: TP 5, FP 2, FN 2.
    assert_eq!(report.pooled[&1].dice, Some(10.0 / 14.0));
    assert_eq!(report.median[&1].dice, Some(0.75));
    assert!((report.sd[&1].dice.unwrap() - 0.125f64.sqrt()).abs() < 1e-12, "2 · 0.25² / 1");
    assert_eq!(report.sd[&2].dice, None, "one value");
    assert_eq!((report.worst_cases[0].case.as_str(), report.worst_cases[0].class), ("b", 1));
}

#[test]
fn all_foreground_scores_one_under_gps_reference_only() {
    let all = [case("a", &[(10, 90, 0)]), case("b", &[(20, 80, 0)])];
    assert!(report(&all, plain(Empty::Nan)).mdice.unwrap() < 0.3);
    assert!(report(&all, by(Protocol::Mmseg)).mdice.unwrap() < 0.3);
    let gps = report(&all, by(Protocol::GpsReference));
    assert_eq!((gps.mdice, gps.miou), (Some(1.0), Some(1.0)));
    assert!(!gps.protocol.comparable && gps.table().contains("not comparable"));
    // Recall 0.92 prints as 2 R / (1 + R) = 0.958, whatever the precision.
    let gps = report(&[case("a", &[(46, 40, 4)])], by(Protocol::GpsReference));
    assert_eq!(gps.miou, Some(0.92));
    assert!((gps.mdice.unwrap() - 0.958_333).abs() < 1e-6);
}

#[test]
fn mmseg_pools_and_counts_background_as_a_class() {
    // Foreground TP 6, FP 1, FN 3: 12 / 16. Background TP 190, FP 3, FN 1: 380 / 384.
    let report = report(&[case("a", &[(4, 1, 1)]), case("b", &[(2, 0, 2)])], by(Protocol::Mmseg));
    assert!((report.mdice.unwrap() - (12.0 / 16.0 + 380.0 / 384.0) / 2.0).abs() < 1e-12);
    assert!((report.miou.unwrap() - (6.0 / 10.0 + 190.0 / 194.0) / 2.0).abs() < 1e-12);
    assert!(report.protocol.averaging.contains("background"));
    assert!(report.metric_per_case[0].metrics.contains_key(&0));
}

#[test]
fn order_of_input_changes_nothing() {
    let cases = [case("b", &[(1, 2, 3)]), case("a", &[(9, 0, 1)]), case("c", &[(5, 5, 5), (1, 1, 1)])];
    let reversed: Vec<CaseScore> = cases.iter().rev().cloned().collect();
    assert_eq!(report(&cases, Options::default()), report(&reversed, Options::default()));
    assert_eq!(report(&cases, Options::default()).metric_per_case[0].case, "a");
}

#[test]
fn intervals_are_seeded_hold_the_mean_and_need_two_cases() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let cases: Vec<CaseScore> = (0..30)
        .map(|i| {
            case(&format!("c{i:02}"), &[(rng.random_range(1..30), rng.random_range(0..30), rng.random_range(0..30))])
        })
        .collect();
    let (one, other) = (report(&cases, Options::default()), report(&cases, Options { seed: 1, ..Options::default() }));
    assert_eq!(one.mdice_ci95, report(&cases, Options::default()).mdice_ci95);
    assert_ne!(one.mdice_ci95, other.mdice_ci95);
    let [low, high] = one.mdice_ci95.unwrap();
    assert!(low < one.mdice.unwrap() && one.mdice.unwrap() < high);
    assert_eq!(report(&cases[..1], Options::default()).mdice_ci95, None);
    let undefined = [case("a", &[(1, 1, 1)]), case("b", &[(0, 0, 0)])];
    assert_eq!(report(&undefined, Options::default()).mdice_ci95, None, "one defined case");
}

#[test]
fn miou_never_falls_below_what_mdice_demands() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let mut draw = || (rng.random_range(0..12), rng.random_range(0..12), rng.random_range(0..12));
    for _ in 0..200 {
        let cases: Vec<CaseScore> = (0..5).map(|i| case(&format!("{i}"), &[draw(), draw()])).collect();
        for empty in Empty::ALL {
            for protocol in [Protocol::Plain, Protocol::Mmseg, Protocol::GpsReference] {
                let report = report(&cases, Options { protocol, resamples: 2, ..plain(empty) });
                assert!(agree(report.mdice, report.miou), "{:?} {:?}", report.mdice, report.miou);
            }
        }
    }
    assert!(!agree(Some(0.881), Some(0.725)), "the published pair shares no definition");
}

#[test]
fn nothing_is_no_mean() {
    assert_eq!(Report::from_cases(vec![], &Options::default()).unwrap_err().kind.exit_code(), 3);
    let twice = vec![case("a", &[(1, 0, 0)]), case("a", &[(1, 0, 0)])];
    assert!(Report::from_cases(twice, &Options::default()).unwrap_err().message.contains("`a`"));
}

#[test]
fn an_empty_set_is_undefined_and_counted() {
    let report = report(&[case("a", &[]), case("b", &[])], Options::default());
    assert_eq!((report.mdice, report.miou, report.mdice_ci95), (None, None, None));
    assert_eq!((report.n_empty_reference, report.empty_reference.n_correct), (2, 2));
    let json = report.json().unwrap();
    assert!(json["mDice"].is_null() && json["mean"]["1"]["Dice"].is_null());
}

#[test]
fn empty_references_are_counted_apart() {
    let report =
        report(&[case("a", &[(0, 7, 0)]), case("b", &[(0, 0, 0)]), case("c", &[(5, 0, 0)])], plain(Empty::Nan));
    assert_eq!((report.n_empty_reference, report.empty_reference.n_correct), (2, 1));
    assert_eq!(report.empty_reference.mean_false_positives, Some(3.5));
    assert_eq!(report.mdice, Some(0.5), "0 and 1; the case in neither mask is left out");
}

#[test]
fn classes_asked_for_are_the_classes_scored() {
    let options = Options { classes: Some(BTreeSet::from([2, 3])), ..plain(Empty::Nan) };
    let report = report(&[case("a", &[(1, 1, 1), (4, 1, 1)])], options);
    assert_eq!(report.mean.keys().copied().collect::<Vec<_>>(), [2, 3]);
    assert_eq!((report.mdice, report.n_absent[&3]), (Some(0.8), 1));
}

#[test]
fn pranet_refuses_masks() {
    let error = Report::from_cases(vec![case("a", &[(1, 0, 0)])], &by(Protocol::Pranet)).unwrap_err();
    assert!(error.message.contains("probability maps") && error.hint.unwrap().contains("predict --prob"));
}

#[test]
fn json_has_the_promised_shape() {
    let mut one = case("c01", &[(4, 1, 1)]);
    (one.reference_file, one.prediction_file) = (Some("ref/c01.png".into()), Some("pred/c01.png".into()));
    let surface = SurfaceScore { hd95_mm: Some(1.0), assd_mm: Some(0.4), nsd: Some(1.0) };
    one.classes.get_mut(&1).unwrap().surface = Some(surface);
    let json = report(&[one], Options::default()).json().unwrap();
    let promised = serde_json::json!({
        "protocol": {"name": "plain", "empty": "nan", "nsd_tolerance_mm": 1.0},
        "metric_per_case": [{"case": "c01", "reference_file": "ref/c01.png", "prediction_file": "pred/c01.png",
            "metrics": {"1": {"Dice": 0.8, "IoU": 4.0 / 6.0, "TP": 4, "FP": 1, "FN": 1, "TN": 94, "n_pred": 5, "n_ref": 5,
                "sensitivity": 0.8, "precision": 0.8, "HD95_mm": 1.0, "ASSD_mm": 0.4, "NSD": 1.0}}}],
        "mean": {"1": {"Dice": 0.8, "IoU": 4.0 / 6.0}}, "foreground_mean": {"Dice": 0.8, "IoU": 4.0 / 6.0},
        "mDice": 0.8, "mIoU": 4.0 / 6.0, "mDice_ci95": null, "mIoU_ci95": null,
        "pooled": {"1": {"Dice": 0.8, "IoU": 4.0 / 6.0}}, "n_cases": 1, "n_empty_reference": 0
    });
    contains(&json, &promised, "");
    let order: Vec<&String> = json.as_object().unwrap().keys().take(11).collect();
    assert_eq!(order, promised.as_object().unwrap().keys().collect::<Vec<_>>());
    let back: Report = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(back.json().unwrap(), json);
}

/// Every promised key is there with its value; more keys may be.
fn contains(found: &serde_json::Value, promised: &serde_json::Value, at: &str) {
    match (found, promised) {
        (serde_json::Value::Object(found), serde_json::Value::Object(promised)) => {
            for (key, value) in promised {
                contains(found.get(key).unwrap_or_else(|| panic!("no {at}/{key}")), value, &format!("{at}/{key}"));
            }
        }
        (serde_json::Value::Array(found), serde_json::Value::Array(promised)) => {
            assert_eq!(found.len(), promised.len(), "{at}");
            found.iter().zip(promised).for_each(|(f, p)| contains(f, p, at));
        }
        _ => assert_eq!(found, promised, "{at}"),
    }
}

#[test]
fn table_names_the_rule_beside_the_number() {
    let table = report(&[case("a", &[(4, 1, 1)]), case("bb", &[(0, 0, 0)])], plain(Empty::Nan)).table();
    let expected = "\
case    Dice     IoU   sens.   prec.
a     0.8000  0.6667  0.8000  0.8000
bb         -       -       -       -

mDice     0.8000
mIoU      0.6667
          (plain: mean over cases, then over foreground classes)
pooled    Dice 0.8000  IoU 0.6667  (class 1; counts added over cases first)
cases     2, 1 with an empty reference (1 of them rightly left empty)
          class 1 is in neither mask of 1 of 2 cases: left out of the mean
";
    assert_eq!(table, expected);
}

#[test]
fn csv_has_a_line_a_class_and_empty_fields_for_undefined() {
    let csv = report(&[case("a,b", &[(4, 1, 1)]), case("c", &[(0, 0, 0)])], plain(Empty::Nan)).csv().unwrap();
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines[0].split(',').count(), 17);
    assert!(lines[1].starts_with("\"a,b\",1,0.8,0.6666666666666666,4,1,1,94,5,5,0.8,0.8,,,,,"), "{}", lines[1]);
    assert_eq!(lines[2], "c,1,,,0,0,0,100,0,0,,,,,,,");
}
