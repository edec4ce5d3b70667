//! models/tiny.toml, the card of the weights that are compiled in, says of the file beside it what it is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

use segft::io::safetensors::Reader;
use segft::job::{base, pretrain};
use segft::model::{SamConfig, checkpoint};
use std::path::Path;

#[test]
fn the_card_is_that_of_the_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    let card: toml::Table = toml::from_str(&read("models/tiny.toml")).unwrap();
    let text = |key: &str| card[key].as_str().unwrap();
    let number = |key: &str| u64::try_from(card[key].as_integer().unwrap()).unwrap();

    let file = root.join("models").join(text("file"));
    assert_eq!(checkpoint::file_sha256(&file).unwrap(), text("sha256"));
    assert_eq!(base::load(text("name")).unwrap().sha256, text("sha256"), "what is compiled in");
    let weights = checkpoint::read(&file).unwrap();
    assert_eq!(weights.counts().0 as u64, number("parameters"));
    assert_eq!(Some(&weights.config), SamConfig::named(text("name")).as_ref());
    let side = weights.config.image_size;
    assert!(text("input").starts_with(&format!("{side} × {side} ")), "{}", text("input"));
    let (container, precision) = text("format").split_once(", ").unwrap();
    assert_eq!(checkpoint::outline(&file).unwrap().format, container);
    let types = Reader::open(&file).unwrap().entries().into_values().map(|(dtype, _)| format!("{dtype:?}"));
    assert!(types.map(|name| name.to_lowercase()).all(|name| name == precision));

    let recipe = pretrain::read(&root.join(text("recipe"))).unwrap();
    assert_eq!((recipe.model.as_str(), recipe.seed), (text("name"), number("seed")));
    // Part of it is under a licence that asks to be named.
    let data = read(text("recipe")).contains("PolypGen") && read("models/README.md").contains("PolypGen");
    assert!(data && text("licence").contains("PolypGen, CC BY 4.0"), "{}", text("licence"));
    assert_eq!(card["medical_device"].as_bool(), Some(false));

    let page = read("models/README.md");
    for said in [&text("sha256")[..8], &format!("{:.2} M parameters", number("parameters") as f64 / 1e6)] {
        assert!(page.contains(said), "models/README.md does not say {said}");
    }
}
