//! `predict`: pictures, volumes and folders of them in, masks on the same grid out.

use super::base;
use super::case::Input;
use super::prompt::{self, Taken};
use crate::data::Form;
use crate::error::{Error, Result};
use crate::image::SliceFrame;
pub use crate::image::{Axis, Window};
use crate::io::stem;
use crate::io::{Replace, check_free, dicom, nifti, picture as pictures};
use crate::predict::{Precision, Predictor, Preprocessing, Prompts, Views};
use crate::progress::Progress;
use crate::run::Run;
use crate::tune::patch::{Direction, Patch};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Which weights answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Weights {
    /// The newest completed run; without one, the base model if there are prompts.
    Newest,
    /// This run.
    Run(PathBuf),
    /// The base model as it is.
    Base,
}

/// What to predict, with what, and where to.
#[derive(Debug, Clone)]
pub struct Request {
    /// Files and folders.
    pub inputs: Vec<PathBuf>,
    /// Which weights answer.
    pub weights: Weights,
    /// The base model, where it is not the run's own.
    pub model: Option<String>,
    /// A folder, or a file for one input.
    pub out: Option<PathBuf>,
    /// Whether existing results are replaced.
    pub replace: Replace,
    /// Probability from which a pixel is foreground; the run's by default, ½ without one.
    pub threshold: Option<f32>,
    /// Whether probabilities are written too.
    pub probabilities: Probabilities,
    /// Boxes as given: `x0,y0,x1,y1`, in volumes `i0,j0,k0,i1,j1,k1`.
    pub boxes: Vec<String>,
    /// Points as given: `x,y[,0|1]`, in volumes `i,j,k[,0|1]` or `mm:x,y,z[,0|1]`.
    pub points: Vec<String>,
    /// Prompts taken from references instead: the kind, and a file or folder.
    pub taken: Option<(Taken, PathBuf)>,
    /// How often a picture or slice is looked at.
    pub views: Views,
    /// How the base model sees volumes.
    pub slices: Slices,
    /// In what the encoder's linear layers multiply.
    pub dtype: Precision,
    /// `auto`, `cpu`, `cuda`, `cuda:N`.
    pub device: String,
}

/// Whether probability maps are written beside the masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probabilities {
    /// Masks only.
    Skipped,
    /// `<name>_prob` beside each mask.
    Written,
}

/// How the base model is to see volumes, where that is not as usual.
#[derive(Debug, Clone, Default)]
pub struct Slices {
    /// The plane in which they are cut.
    pub axis: Option<Axis>,
    /// Grey levels.
    pub window: Option<Window>,
    /// Channel of volumes with several.
    pub channel: Option<usize>,
    /// Slices below and above.
    pub context: Option<usize>,
}

impl Slices {
    fn of(&self, usual: Preprocessing) -> Preprocessing {
        Preprocessing {
            axis: self.axis.unwrap_or(usual.axis),
            window: self.window.unwrap_or(usual.window),
            channel: self.channel.unwrap_or(usual.channel),
            context: self.context.unwrap_or(usual.context),
            ..usual
        }
    }

    /// A run was trained with its own.
    fn check_none(&self) -> Result<()> {
        let given = [
            ("--axis", self.axis.is_some()),
            ("--window", self.window.is_some()),
            ("--channel", self.channel.is_some()),
            ("--context", self.context.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((flag, _)) => Err(Error::usage(format!("{flag} is the run's own: its network was trained with it"))
                .hint("leave it out, or ask the base model with --run none")),
        }
    }
}

/// A picture without a value as bright as this shows nothing: as 12 bits in a 16-bit file do.
const DARK: u8 = 24;

/// One finished case.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Done {
    /// The input.
    pub input: String,
    /// Its mask.
    pub mask: String,
    /// Its probability map, where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probabilities: Option<String>,
    /// Foreground voxels.
    pub foreground: usize,
    /// Voxels in all.
    pub voxels: usize,
}

/// An input that could not be predicted.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Failed {
    /// The input.
    pub input: String,
    /// Why.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

/// What came of the inputs.
#[derive(Debug)]
pub struct Outcome {
    /// Those that are predicted.
    pub done: Vec<Done>,
    /// Those that are not, when there are others.
    pub failed: Vec<Failed>,
}

impl Outcome {
    /// That some failed (exit 1), naming them.
    pub fn error(&self) -> Option<Error> {
        let names: Vec<&str> = self.failed.iter().map(|failed| failed.input.as_str()).collect();
        let (n, of) = (names.len(), names.len() + self.done.len());
        (n > 0).then(|| {
            Error::job(format!("{n} of {of} inputs failed: {}", names.join(", ")))
                .hint("the others are done; see the warnings above")
        })
    }
}

/// Predicts every input; a broken one is reported, and the others are kept.
///
/// # Errors
/// A usage error before anything is predicted; after that only what concerns the one input there is.
pub fn run(request: &Request, progress: &Progress) -> Result<Outcome> {
    if let Some(wrong) = request.threshold.filter(|t| !(0.0..=1.0).contains(t)) {
        return Err(Error::usage(format!("--threshold is {wrong}: it must lie between 0 and 1")));
    }
    let jobs = plan(request, progress)?;
    if !request.boxes.is_empty() && request.boxes.len() > 1 {
        return Err(Error::usage("one --box at a time: SAM takes one box per mask"));
    }
    let device = super::device(&request.device, progress)?;
    super::check_dtype(&device, request.dtype)?;
    let (predictor, threshold, trained_on) = load(request, &device.device, progress)?;
    let predictor = predictor.with_views(request.views).computing_in(request.dtype);
    let volumes = jobs.iter().any(|(input, _)| nifti::is_nifti(input));
    if volumes && trained_on == Some(Form::Pictures) {
        progress.warn("this model was trained on pictures and is asked for a volume: check the result by eye");
    }
    if trained_on == Some(Form::Volumes) && jobs.iter().any(|(input, _)| !nifti::is_nifti(input)) {
        progress.warn("this model was trained on volumes and is asked for a picture: check the result by eye");
    }
    let mut done = Vec::new();
    let mut failed = Vec::new();
    let mut told = false;
    progress.start("predicting", jobs.len());
    for (n, (input, output)) in jobs.iter().enumerate() {
        if !told && nifti::is_nifti(input) {
            told = tell_channel(input, predictor.preprocessing().channel, progress);
        }
        match one(request, &predictor, threshold, input, output, progress) {
            Ok(case) => {
                progress.line(format!("{} → {}", case.input, case.mask));
                done.push(case);
            }
            Err(error) if jobs.len() == 1 => return Err(error),
            Err(error) => {
                let hint = error.hint.as_ref().map(|h| format!("\n  hint: {h}")).unwrap_or_default();
                progress.warn(format!("{error}{hint}"));
                let input = input.display().to_string();
                failed.push(Failed { input, message: error.to_string(), hint: error.hint });
            }
        }
        progress.at(n + 1, "");
    }
    progress.end();
    Ok(Outcome { done, failed })
}

/// Says once which channel of a volume with several is looked at. A header that cannot be read is told of later.
fn tell_channel(input: &Path, channel: usize, progress: &Progress) -> bool {
    match nifti::read_header(input) {
        Ok(header) if header.n_channels > 1 => {
            progress.line(format!(
                "{}: channel {channel} of {} is taken (counted from 0)",
                input.display(),
                header.n_channels
            ));
            true
        }
        _ => false,
    }
}

/// Says that the slices of a volume take several squares each: it takes as many times as long.
fn tell_squares(name: &str, case: &Input, preprocessing: &Preprocessing, progress: &Progress) {
    let Input::Volume(volume, _) = case else { return };
    let frame = SliceFrame::new(&volume.grid, preprocessing.axis);
    if let (Some(mm), Ok(fit)) = (preprocessing.spacing_mm, preprocessing.fit_slices(&frame))
        && !fit.is_whole()
    {
        progress
            .line(format!("{name}: at the run's {mm:.4} mm a slice takes {} overlapping squares", fit.tile_count()));
    }
}

/// Inputs and where each result goes, checked before the first is read.
fn plan(request: &Request, progress: &Progress) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut jobs = Vec::new();
    let single = request.inputs.len() == 1 && request.inputs[0].is_file();
    if let Some(out) = request.out.as_ref().filter(|out| !single && (out.is_file() || is_file_name(out))) {
        return Err(Error::usage("--out names a file, but there are several inputs, or a folder")
            .at(out)
            .hint("name a folder"));
    }
    for input in &request.inputs {
        if input.is_dir() {
            let folder = match &request.out {
                Some(out) => out.clone(),
                None => {
                    let name = input.canonicalize().ok().and_then(|p| p.file_name().map(|n| n.to_os_string()));
                    PathBuf::from(format!("{}_seg", name.unwrap_or_default().to_string_lossy()))
                }
            };
            for (file, name) in cases_of(input, progress)? {
                let to = super::case::result_path(&folder, &name, form(&file));
                jobs.push((file, to));
            }
        } else if input.is_file() {
            if !nifti::is_nifti(input) && !pictures::is_picture(input) {
                return Err(Error::data("neither a NIfTI volume nor a picture by its name")
                    .at(input)
                    .hint(readable(input)));
            }
            let to = match &request.out {
                Some(out) if single && names_file(out) => {
                    check_ending(out, form(input))?;
                    out.clone()
                }
                Some(out) => super::case::result_path(out, &stem(input), form(input)),
                None => {
                    let gz = !input.to_string_lossy().to_lowercase().ends_with(".nii");
                    let ending = match form(input) {
                        Form::Pictures => "png",
                        Form::Volumes if gz => "nii.gz",
                        Form::Volumes => "nii",
                    };
                    PathBuf::from(format!("{}_seg.{ending}", stem(input)))
                }
            };
            jobs.push((input.clone(), to));
        } else {
            return Err(Error::usage("no such file or folder").at(input));
        }
    }
    let inputs: BTreeMap<PathBuf, &PathBuf> =
        jobs.iter().filter_map(|(input, _)| Some((input.canonicalize().ok()?, input))).collect();
    let mut targets = BTreeMap::new();
    for (input, output) in &jobs {
        if let Some(other) = targets.insert(output.clone(), input) {
            return Err(Error::usage(format!(
                "`{}` and `{}` would both be written to `{}`",
                other.display(),
                input.display(),
                output.display()
            ))
            .hint("predict them one by one, with --out FILE"));
        }
        let probabilities =
            (request.probabilities == Probabilities::Written).then(|| probability_path(output)).into_iter();
        for written in std::iter::once(output.clone()).chain(probabilities) {
            if let Some(input) = written.canonicalize().ok().and_then(|path| inputs.get(&path)) {
                return Err(Error::usage(format!("the result would replace the input `{}`", input.display()))
                    .at(written)
                    .hint("choose another --out, or leave that input out"));
            }
            check_free(&written, request.replace)?;
        }
    }
    Ok(jobs)
}

/// Whether `--out` of one input is meant as a file: it has an ending, and is no folder.
fn names_file(out: &Path) -> bool {
    let folder = out.is_dir() || out.to_string_lossy().ends_with(std::path::MAIN_SEPARATOR);
    !folder && (out.is_file() || out.extension().is_some())
}

/// Masks are written in one container each; another name would lie about what is inside.
fn check_ending(out: &Path, form: Form) -> Result<()> {
    let name = out.to_string_lossy().to_lowercase();
    let (fits, expected) = match form {
        Form::Pictures => (name.ends_with(".png"), "a picture's mask is written as .png"),
        Form::Volumes => {
            (name.ends_with(".nii") || name.ends_with(".nii.gz"), "a volume's mask is written as .nii or .nii.gz")
        }
    };
    if fits {
        return Ok(());
    }
    Err(Error::usage(expected).at(out).hint("give --out such a name, or end it with / for a folder"))
}

/// Whether `--out` names a file rather than a folder.
fn is_file_name(out: &Path) -> bool {
    !out.is_dir() && (nifti::is_nifti(out) || pictures::is_picture(out))
}

fn form(path: &Path) -> Form {
    if nifti::is_nifti(path) { Form::Volumes } else { Form::Pictures }
}

/// The cases of a folder with their names. Other channels, results of earlier predictions and what is neither picture nor
/// volume are passed over, and said.
fn cases_of(folder: &Path, progress: &Progress) -> Result<Vec<(PathBuf, String)>> {
    let (files, others) = files_of(folder)?;
    if let Some(first) = others.first().and_then(|file| file.file_name()) {
        let (n, first) = (others.len(), first.to_string_lossy());
        progress
            .line(format!("{}: {n} files of other kinds are passed over, the first is `{first}`", folder.display()));
    }
    let stems: BTreeSet<String> = files.iter().map(|file| stem(file)).collect();
    let raw = folder.file_name().is_some_and(|n| n == "imagesTr" || n == "imagesTs");
    let mut cases = Vec::new();
    let [mut results, mut channels] = [0; 2];
    for file in files {
        let name = stem(&file);
        let result = ["_seg", "_prob"].iter().filter_map(|ending| name.strip_suffix(ending));
        if result.into_iter().any(|input| stems.contains(input)) {
            results += 1;
            continue;
        }
        match channel_of(&name).filter(|_| raw && nifti::is_nifti(&file)) {
            None => cases.push((file, name)),
            Some((case, "0000")) => cases.push((file, case.to_string())),
            Some(_) => channels += 1,
        }
    }
    if channels > 0 {
        progress.warn(format!("{}: {channels} files of other channels than 0000 are not looked at", folder.display()));
    }
    if results > 0 {
        progress.line(format!("{}: {results} results of earlier predictions are passed over", folder.display()));
    }
    Ok(cases)
}

/// nnU-Net's `<case>_<channel>`.
fn channel_of(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once('_').filter(|(_, channel)| channel.len() == 4 && channel.bytes().all(|b| b.is_ascii_digit()))
}

/// The volumes and pictures of a folder, and what else can be seen in it, both sorted.
fn files_of(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::reading(folder, &e))?;
    let mut all: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|p| p.is_file()).collect();
    all.sort();
    let hidden = |p: &Path| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
    // Of a .hdr/.img pair the header stands for both.
    let second = |p: &Path| nifti::is_nifti(p) && stem_ends(p, ".img");
    all.retain(|p| !hidden(p) && !second(p));
    let (files, others): (Vec<PathBuf>, _) =
        all.into_iter().partition(|p| nifti::is_nifti(p) || pictures::is_picture(p));
    if files.is_empty() {
        let hint = match others.iter().any(|p| dicom::is_dicom(p)) {
            true => dicom::hint(folder),
            false => "name the folder that holds the files".into(),
        };
        return Err(Error::usage("no picture and no volume in this folder").at(folder).hint(hint));
    }
    Ok((files, others))
}

/// What to do with a file that segft does not read.
fn readable(file: &Path) -> String {
    match dicom::is_dicom(file) {
        true => dicom::hint(file.parent().unwrap_or(Path::new("."))),
        false => "segft reads .nii, .nii.gz, .hdr/.img, .jpg, .png, .tif, .bmp".into(),
    }
}

fn stem_ends(path: &Path, ending: &str) -> bool {
    let name = path.to_string_lossy().to_lowercase();
    name.strip_suffix(".gz").unwrap_or(&name).ends_with(ending)
}

/// `<name>_prob` beside a mask.
fn probability_path(mask: &Path) -> PathBuf {
    let name = mask.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let ending = name[stem(mask).len()..].to_string();
    mask.with_file_name(format!("{}_prob{ending}", stem(mask)))
}

/// The network, the threshold, and what it was trained on.
fn load(
    request: &Request,
    device: &burn::tensor::Device,
    progress: &Progress,
) -> Result<(Predictor, f32, Option<Form>)> {
    let prompted = !request.boxes.is_empty() || !request.points.is_empty() || request.taken.is_some();
    let run = match &request.weights {
        Weights::Run(folder) => Some(Run::open(folder)?),
        Weights::Newest => match Run::newest() {
            Ok(run) => Some(run),
            Err(_) if prompted => None,
            Err(error) => {
                return Err(error.hint(
                    "train one with `segft train --dataset …`, or point at something with --box or --point \
                     and the base model answers",
                ));
            }
        },
        Weights::Base => None,
    };
    let Some(run) = run else {
        if !prompted {
            return Err(Error::usage("the base model needs a prompt: it was not trained to find anything by itself")
                .hint("point at something with --box x0,y0,x1,y1 or --point x,y, or train with `segft train`"));
        }
        let base = base::load(request.model.as_deref().unwrap_or("tiny"))?;
        progress.line(format!("base model {} ({})", base.name, base.origin));
        if let Some(warning) = base::warning(&base) {
            progress.warn(warning);
        }
        let preprocessing = request.slices.of(Preprocessing::new(base.config.image_size));
        let sam = base.into_sam(device);
        return Ok((Predictor::new(&sam, &preprocessing, device), request.threshold.unwrap_or(0.5), None));
    };
    request.slices.check_none()?;
    let patch = Patch::load(&run.existing_patch()?)?;
    progress.line(format!("run {} ({} on {})", run.folder.display(), patch.about.method, patch.about.base_name));
    let mut base = base::load(request.model.as_deref().unwrap_or(&patch.about.base_model)).map_err(|e| {
        let hint = e.hint.clone().unwrap_or_default();
        let sha = crate::tune::selection::short(&patch.about.base_sha256).to_string();
        e.hint(format!("the run needs its base (SHA-256 {sha}…): name it with --model FILE. {hint}"))
    })?;
    progress.detail(format!("base {} (SHA-256 {})", base.origin, base.sha256));
    let other = |e: Error| e.at(run.patch()).hint("give the base it was trained on with --model");
    patch.turn(&mut base, Direction::Apply).map_err(other)?;
    let sam = base.into_sam(device);
    let threshold = request.threshold.unwrap_or(patch.about.threshold);
    Ok((Predictor::new(&sam, &patch.about.preprocessing, device), threshold, Some(patch.about.form)))
}

fn one(
    request: &Request,
    predictor: &Predictor,
    threshold: f32,
    input: &Path,
    output: &Path,
    progress: &Progress,
) -> Result<Done> {
    let preprocessing = predictor.preprocessing();
    let case = Input::read(input, preprocessing.channel)?;
    let axis = preprocessing.axis;
    let prompts = match &request.taken {
        Some((kind, reference)) => Some(prompt::taken(*kind, reference, input, &case, axis)?),
        None if request.boxes.is_empty() && request.points.is_empty() => None,
        None => Some(prompt::given(&request.boxes, &request.points, &case, axis).map_err(|e| e.at(input))?),
    };
    let prompt_of = |slice: usize| match &prompts {
        None => Some(Prompts::default()),
        Some(by_slice) => by_slice.get(&slice).cloned(),
    };
    let name = stem(input);
    if let Input::Picture(picture) = &case
        && let Some(brightest) = picture.rgb.iter().max().filter(|brightest| **brightest < DARK)
    {
        progress.warn(format!(
            "{name} is nearly black: its brightest value is {brightest} of 255. 16-bit pictures are read as 0 to 65535: stretch \
             one that holds fewer bits before it is saved"
        ));
    }
    tell_squares(&name, &case, preprocessing, progress);
    let probabilities = case.probabilities(predictor, prompt_of, |done, of| {
        if of > 1 {
            progress.within(&format!("{name}, slice {done} of {of}"))
        }
    })?;
    let mut labels = case.labels(&probabilities, threshold);
    if let Some(by_slice) = &prompts
        && let Input::Volume(volume, _) = &case
    {
        // Slices that nobody pointed at are background, also with a threshold of 0.
        let frame = SliceFrame::new(&volume.grid, preprocessing.axis);
        for slice in (0..frame.count()).filter(|s| !by_slice.contains_key(s)) {
            for pixel in 0..frame.width() * frame.height() {
                labels.voxels[frame.index(slice, pixel % frame.width(), pixel / frame.width())] = 0;
            }
        }
    }
    if let Some(folder) = output.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|e| Error::writing(folder, &e))?;
    }
    case.write_labels(output, &labels)?;
    let maps = (request.probabilities == Probabilities::Written).then(|| probability_path(output));
    if let Some(path) = &maps {
        case.write_probabilities(path, &probabilities)?;
    }
    Ok(Done {
        input: input.display().to_string(),
        mask: output.display().to_string(),
        probabilities: maps.map(|path| path.display().to_string()),
        foreground: labels.voxels.iter().filter(|v| **v != 0).count(),
        voxels: labels.voxels.len(),
    })
}
