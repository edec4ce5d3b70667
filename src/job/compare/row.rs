//! A row of a comparison: a method, settings of its own, a base of its own.

use crate::config::Config;
use crate::error::{Error, Result};

/// `METHOD[:KEY=VALUE…][@MODEL]`, as `gps`, `gps@tiny-random`, `gps:k=16`, `gps:score=fisher:group=global`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// As it was written: the row's name in tables and files.
    pub(super) name: String,
    pub(super) method: String,
    /// Keys of the configuration and their values, for this row alone.
    settings: Vec<(String, String)>,
    /// Instead of the comparison's.
    pub(super) model: Option<String>,
}

impl Row {
    /// Reads a row's name; `keys` may be set in it.
    ///
    /// # Errors
    /// A usage error for what is no `KEY=VALUE`, and for a key that belongs to the whole comparison.
    pub(super) fn parse(name: &str, keys: &[&str]) -> Result<Row> {
        let (left, model) = match name.split_once('@') {
            Some((left, model)) => (left, Some(model.to_string())),
            None => (name, None),
        };
        let mut words = left.split(':');
        let method = words.next().unwrap_or_default().to_string();
        let setting = |word: &str| {
            let wrong = |m: String| Error::usage(m).hint(format!("a row's own keys: {}", keys.join(", ")));
            let (key, value) = word
                .split_once('=')
                .ok_or_else(|| wrong(format!("--methods: `{word}` in `{name}` is no KEY=VALUE")))?;
            let key = key.replace('-', "_");
            match keys.contains(&key.as_str()) {
                true => Ok((key, value.to_string())),
                false => Err(wrong(format!("--methods: the key `{key}` in `{name}` is not a row's own"))),
            }
        };
        let settings = words.map(setting).collect::<Result<_>>()?;
        Ok(Row { name: name.to_string(), method, settings, model })
    }

    /// What all rows share, with the row's own on top.
    ///
    /// # Errors
    /// A usage error for an unknown method, a value that does not fit, and a setting that the method does not take.
    pub(super) fn config(&self, shared: &Config) -> Result<Config> {
        let config = Config { model: self.model.clone().unwrap_or(shared.model.clone()), ..shared.clone() };
        config.for_method(&self.method)?.with(&self.settings, &format!("the row `{}`", self.name))
    }

    /// The row's name as part of a file's: a base may be a path.
    pub(super) fn file_name(&self) -> String {
        self.name.replace(['/', '\\', ':'], "_")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: [&str; 3] = ["k", "ratio", "group"];

    #[test]
    fn a_row_has_settings_and_a_base_of_its_own() {
        let shared = Config { k: Some(4), ..Config::default() };
        let row = Row::parse("gps:ratio=0.01:group=global@tiny-random", &KEYS).unwrap();
        let config = row.config(&shared).unwrap();
        assert_eq!((config.k, config.ratio, config.model.as_str()), (None, Some(0.01), "tiny-random"));
        assert_eq!(config.group, Some(crate::method::Group::Global));
        assert_eq!(row.file_name(), "gps_ratio=0.01_group=global@tiny-random");
        // The shared number goes to methods that choose entries, alone.
        assert_eq!(Row::parse("gps", &KEYS).unwrap().config(&shared).unwrap().k, Some(4));
        assert_eq!(Row::parse("full", &KEYS).unwrap().config(&shared).unwrap().k, None);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let shared = Config::default();
        for (name, part) in [("gps:k", "KEY=VALUE"), ("gps:seed=3", "`seed`")] {
            let error = Row::parse(name, &KEYS).unwrap_err();
            assert!(error.message.contains(part) && error.message.contains(name), "{error}");
        }
        for (name, part) in [("full:k=3", "--k"), ("gps:group=all", "group"), ("gps:k=0", "--k"), ("gsp", "gsp")] {
            let error = Row::parse(name, &KEYS).unwrap().config(&shared).unwrap_err();
            assert!(error.message.contains(part), "{name}: {error}");
        }
    }
}
