//! Cases with their references in memory, and how validation scores them.

use crate::data::{Case, Form};
use crate::device;
use crate::error::Result;
use crate::image::Labels;
use crate::job::case::{Input, prompt_free};
use crate::model::Sam;
use crate::model::sam::Cache;
use crate::predict::{Predictor, Preprocessing};
use crate::score::{self, CaseScore, Surfaces};
use crate::train::batch;
use std::sync::Arc;
use std::time::Instant;

/// How validation scores.
pub(in crate::job) fn judging() -> score::Options {
    score::Options { surfaces: Surfaces::Skipped, resamples: 1, ..score::Options::default() }
}

/// A case with its reference, in memory.
pub(in crate::job) struct Reference {
    pub(super) id: String,
    pub(super) mask: String,
    pub(super) input: Input,
    pub(super) reference: Labels,
}

impl Reference {
    /// Bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        self.input.bytes() + size_of_val(self.reference.voxels.as_slice())
    }

    /// Its score as validation counts it: foreground from the threshold on, no surfaces.
    pub(in crate::job) fn judged(&self, predictor: &Predictor, threshold: f32) -> Result<CaseScore> {
        let probabilities = self.input.probabilities(predictor, prompt_free, |_, _| ())?;
        let labels = self.input.labels(&probabilities, threshold);
        score::evaluate_labels(&self.id, &self.reference, &labels, &judging())
    }

    pub(super) fn read(cases: &[Case], form: Form, preprocessing: &Preprocessing) -> Result<Vec<Reference>> {
        cases.iter().map(|case| Reference::of(case, form, preprocessing)).collect()
    }

    pub(in crate::job) fn of(case: &Case, form: Form, preprocessing: &Preprocessing) -> Result<Reference> {
        Ok(Reference {
            id: case.id.clone(),
            mask: case.mask.display().to_string(),
            input: Input::read(&case.image, preprocessing.channel)?,
            reference: batch::read_reference(case, form, preprocessing)?,
        })
    }
}

/// The validation cases and what predicting them takes beside the network.
pub(in crate::job) struct Validated<'a> {
    pub(in crate::job) cases: &'a [Reference],
    pub(in crate::job) preprocessing: &'a Preprocessing,
    /// Where the encoder's blocks are frozen.
    pub(in crate::job) embeddings: Option<Arc<Cache>>,
}

impl Validated<'_> {
    /// Seconds of a validation, from its first case; embeddings that are kept are there by then.
    pub(in crate::job) fn seconds(&self, sam: &Sam, device: &device::Chosen) -> Result<f64> {
        let Some(case) = self.cases.first() else { return Ok(0.0) };
        let predictor = self.predictor(sam, device);
        if self.embeddings.is_some() {
            case.judged(&predictor, 0.5)?;
        }
        let start = Instant::now();
        case.judged(&predictor, 0.5)?;
        Ok(start.elapsed().as_secs_f64() * self.cases.len() as f64)
    }

    pub(super) fn predictor(&self, sam: &Sam, device: &device::Chosen) -> Predictor {
        Predictor::new(sam, self.preprocessing, &device.device).with_embeddings(self.embeddings.clone())
    }
}
