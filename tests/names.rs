//! Names and shapes of the official checkpoints, against the lists of the published models.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use segft::model::SamConfig;
use std::collections::BTreeMap;

#[test]
fn names_and_shapes_are_the_official_ones() {
    let Some(shared) = common::shared() else { return };
    for model in ["sam_vit_b", "sam_vit_l", "sam_vit_h"] {
        let text = std::fs::read_to_string(shared.join(format!("data/keys/{model}.json"))).unwrap();
        let list: serde_json::Value = serde_json::from_str(&text).unwrap();
        let want = shapes(&list);
        let have: BTreeMap<String, Vec<usize>> =
            SamConfig::named(model).unwrap().specs().into_iter().map(|s| (s.name, s.shape)).collect();
        assert_eq!(have, want, "{model}");
    }
}

fn shapes(list: &serde_json::Value) -> BTreeMap<String, Vec<usize>> {
    let keys = list["keys"].as_object().unwrap();
    let shape =
        |v: &serde_json::Value| v["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
    keys.iter().map(|(name, v)| (name.clone(), shape(v))).collect()
}
