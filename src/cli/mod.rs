//! The command line: flags, dispatch, and how results and errors are printed.

mod flags;
mod print;

use crate::config::Config;
use crate::data;
use crate::error::{Error, Result, nearest};
use crate::io::Replace;
use crate::job;
use crate::phantom;
use crate::progress::{Progress, Voice, tell};
use crate::run::Run;
use crate::tune::patch::{Difference, Direction, Patch};
use crate::tune::selection::{Overlap, Selection};
use clap::{ColorChoice, CommandFactory, FromArgMatches};
use flags::{Cli, Command, DataCommand, PatchCommand};
use serde::Serialize;
use serde_json::{Value, json};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Parses the arguments, runs the command, prints, and gives the exit code.
pub fn main() -> ExitCode {
    // A closed pipe (`segft info … | head`) ends the program quietly, as for other tools.
    let arguments: Vec<String> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
    let color = color_of(&arguments);
    let parsed = flags::command(color).try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return not_parsed(&error, &arguments),
    };
    crate::signal::start();
    std::panic::set_hook(Box::new(|info| {
        tell(&format!("error: segft met a defect of its own: {info}"));
        tell("  hint: please report it, with the command and the run's log.txt");
    }));
    let json = cli.global.json.clone();
    // Set when the one JSON object has been printed, or must not be: then an error goes to stderr alone.
    let told = Cell::new(false);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(cli, &told)));
    match outcome {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            print::error(&error, print::colours(color));
            if let (Some(to), false) = (json, told.get()) {
                let _ = print::json(&error.json(), &to);
            }
            ExitCode::from(error.kind.exit_code())
        }
        Err(_) => ExitCode::from(1),
    }
}

/// `--color` before anything is parsed: it decides how the parser's own errors look.
fn color_of(arguments: &[String]) -> ColorChoice {
    let mut words = arguments.iter().take_while(|a| *a != "--");
    let mut choice = ColorChoice::Auto;
    while let Some(word) = words.next() {
        let value = match word.as_str() {
            "--color" => words.next().map(String::as_str),
            other => other.strip_prefix("--color="),
        };
        choice = value.and_then(|v| v.parse().ok()).unwrap_or(choice);
    }
    choice
}

/// Help and version, or what is wrong with the arguments: also as JSON where `--json` asks for it.
fn not_parsed(error: &clap::Error, arguments: &[String]) -> ExitCode {
    let printed = error.print();
    if !error.use_stderr() {
        let lost = printed.is_err_and(|e| e.kind() != std::io::ErrorKind::BrokenPipe);
        return ExitCode::from(u8::from(lost));
    }
    let wanted = |a: &String| if a == "--json" { Some("-") } else { a.strip_prefix("--json=") }.map(String::from);
    let to = arguments.iter().take_while(|a| *a != "--").filter_map(wanted).last();
    // What exists stays: nobody has parsed whether `--force` is meant for it.
    if let Some(to) = to.filter(|to| to == "-" || !Path::new(to).exists()) {
        let _ = print::json(&print::parse_error(error).json(), &to);
    }
    ExitCode::from(2)
}

fn run(cli: Cli, told: &Cell<bool>) -> Result<()> {
    let global = cli.global;
    let voice = match (global.quiet, global.verbose) {
        (true, _) => Voice::Quiet,
        (_, true) => Voice::Verbose,
        _ => Voice::Normal,
    };
    let progress = Progress::new(voice);
    let replace = if global.force { Replace::Allowed } else { Replace::Never };
    // A result that could not be written in the end would be a job done for nothing.
    if let Some(to) = global.json.as_ref().filter(|to| *to != "-") {
        crate::io::check_place(Path::new(to), replace).inspect_err(|_| told.set(true))?;
    }
    crate::config::check_environment(&environment())?;
    let backend = if cfg!(feature = "cuda") { "cpu and cuda" } else { "cpu" };
    progress.detail(format!("segft {}, burn 0.22.1 ({backend})", env!("CARGO_PKG_VERSION")));
    progress.detail(format!("cache {}", job::base::cache().display()));
    // Results go to stdout as text, or as one JSON object to where `--json` says.
    let answer = |value: Value, text: String| match &global.json {
        Some(to) => print::json(&value, to),
        None => print::stdout(&text),
    };
    // A result beside which something failed: one object holds both.
    let partly = |value: Value, text: String, failed: Option<Error>| match failed {
        None => answer(value, text),
        Some(error) => {
            answer(with_error(value, &error), text)?;
            told.set(true);
            Err(error)
        }
    };
    match cli.command {
        Command::Train(flags) => {
            if let Some(run) = &flags.resume {
                flags.check_resume()?;
                let run = match run {
                    Some(folder) => Run::open(folder)?,
                    None => Run::unfinished()?,
                };
                crate::device::limit_threads(flags.common.threads)?;
                let outcome = job::train::resume(run, &progress)?;
                return answer(outcome.metrics.clone(), print::training(&outcome));
            }
            let config = resolve(&flags.common, &flags.one)?;
            crate::device::limit_threads(config.threads)?;
            let outcome = job::train::start(config, replace, &progress)?;
            answer(outcome.metrics.clone(), print::training(&outcome))
        }
        Command::Plan(flags) => {
            let config = resolve(&flags.common, &flags.one)?;
            crate::device::limit_threads(config.threads)?;
            let forecast = job::plan::run(config, &progress)?;
            answer(forecast.clone(), crate::info::text(&forecast))
        }
        Command::Select(flags) => {
            if let Some(pair) = &flags.diff {
                let [a, b] = [Selection::load(&pair[0])?, Selection::load(&pair[1])?];
                let overlap = Overlap::of(&a, &b);
                return answer(print::overlap_json(&overlap), print::overlap(&overlap));
            }
            let mut config = resolve(&flags.common, &flags.one)?;
            if let Some(halves) = flags.stability {
                crate::device::limit_threads(config.threads)?;
                let stability = job::select::stability(&config, halves, &progress)?;
                return answer(print::stability_json(&stability)?, print::stability(&stability));
            }
            let to = config.out.take().unwrap_or_else(|| PathBuf::from("selection.safetensors"));
            crate::io::check_place(&to, replace)?;
            crate::io::check_ending(&to, &["safetensors"])?;
            crate::device::limit_threads(config.threads)?;
            job::select::run(&config, &to, &progress)?;
            let facts = crate::info::describe(&to)?;
            answer(facts.clone(), crate::info::text(&facts))
        }
        Command::Compare(flags) => {
            let config = resolve(&flags.common, &json!({ "steps": flags.steps, "out": flags.out }))?;
            crate::device::limit_threads(config.threads)?;
            let request = flags.request(config)?;
            for path in flags.csv.iter().chain(&flags.plot) {
                crate::io::check_place(path, replace)?;
            }
            if !flags.report {
                job::compare::fill(&request, replace, &progress)?;
            }
            let table = job::compare::read(&request)?;
            if let Some(path) = &flags.csv {
                let text = table.csv()?;
                crate::io::write_atomic(path, |to| to.write_all(text.as_bytes()))?;
            }
            if let Some(path) = &flags.plot {
                let text = table.svg()?;
                crate::io::write_atomic(path, |to| to.write_all(text.as_bytes()))?;
            }
            answer(table.json()?, table.markdown())
        }
        Command::Predict(flags) => {
            crate::device::limit_threads(flags.threads)?;
            let request = flags.request(replace);
            let outcome = job::predict::run(&request, &progress)?;
            let value = json!({ "cases": outcome.done, "failed": outcome.failed });
            partly(value, String::new(), outcome.error())
        }
        Command::Score(flags) => {
            crate::device::limit_threads(flags.threads)?;
            let (what, options) = flags.request()?;
            if let Some(path) = &flags.csv {
                crate::io::check_place(path, replace)?;
            }
            let report = job::score::run(&what, &options)?;
            if let Some(warning) = job::score::warning(&report) {
                progress.warn(warning);
            }
            if let Some(path) = &flags.csv {
                let text = report.csv()?;
                crate::io::write_atomic(path, |to| to.write_all(text.as_bytes()))?;
            }
            answer(report.json()?, report.table())
        }
        Command::Info { file } => {
            let facts = crate::info::describe(&file)?;
            answer(facts.clone(), crate::info::text(&facts))
        }
        Command::Export { run, to, patch, model } => {
            let run = run.map(|folder| Run::open(&folder)).unwrap_or_else(Run::newest)?;
            if patch {
                job::export::patch_alone(&run, &to, replace)?;
            } else {
                job::export::merged(&run, model.as_deref(), &to, replace)?;
            }
            written(&to, &answer)
        }
        Command::Report { run, out, threads } => {
            crate::device::limit_threads(threads)?;
            let run = run.map(|folder| Run::open(&folder)).unwrap_or_else(Run::newest)?;
            let made = job::report::run(&run, out.as_deref(), replace)?;
            if let Some(warning) = made.warning() {
                progress.warn(warning);
            }
            let path = made.path.display().to_string();
            answer(
                json!({ "report": path, "cases": made.cases, "pictures": made.pictures, "missing": made.missing, "bytes": made.bytes }),
                path,
            )
        }
        Command::Replay { run, threads } => {
            crate::device::limit_threads(threads)?;
            let run = run.map(|folder| Run::open(&folder)).unwrap_or_else(Run::newest)?;
            let replay = job::replay::run(run, &progress)?;
            replay.tidy()?;
            partly(replay.json(), replay.text(), replay.error())
        }
        Command::Patch(command) => match command {
            PatchCommand::Apply { base, patch, to } => {
                job::export::turn(&base, &patch, Direction::Apply, &to, replace)?;
                written(&to, &answer)
            }
            PatchCommand::Revert { merged, patch, to } => {
                job::export::turn(&merged, &patch, Direction::Revert, &to, replace)?;
                written(&to, &answer)
            }
            PatchCommand::Diff { a, b } => {
                let [a, b] = [&a, &b].map(|path| Patch::load(&Run::patch_in(path)?));
                let difference = Difference::of(&a?, &b?);
                answer(print::difference_json(&difference), print::difference(&difference))
            }
        },
        Command::Fetch(flags) => fetch(&flags, replace, &progress, &answer),
        Command::Data(command) => data_command(command, replace, &answer, &partly),
        Command::Pretrain(flags) => {
            crate::device::limit_threads(flags.threads)?;
            let made = job::pretrain::run(&flags.request(), replace, &progress)?;
            answer(made.clone(), crate::info::text(&made))
        }
        Command::Bench(flags) => {
            crate::device::limit_threads(flags.threads)?;
            let figures = job::bench::run(&flags.request(), &progress)?;
            answer(figures.clone(), figures.to_string())
        }
        Command::Doctor => {
            let facts = print::doctor();
            answer(facts.clone(), crate::info::text(&facts))
        }
        Command::Completions { shell } => {
            let mut bytes = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "segft", &mut bytes);
            print::stdout(&String::from_utf8_lossy(&bytes))
        }
        Command::Man => print::stdout(&manual()?),
    }
}

/// The result, and under `error` what failed beside it.
fn with_error(mut value: Value, error: &Error) -> Value {
    if let Some(object) = value.as_object_mut() {
        object.insert("error".into(), error.json()["error"].take());
    }
    value
}

/// The manual page: the program's, then a section for each command.
fn manual() -> Result<String> {
    let failed = |e: std::io::Error| Error::job(format!("manual page: {e}"));
    let mut root = flags::command(ColorChoice::Never);
    root.build();
    let mut page = Vec::new();
    clap_mangen::Man::new(root.clone()).render(&mut page).map_err(failed)?;
    for (name, command) in commands(&root, "SEGFT") {
        let title = name.to_uppercase();
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let mut options = Vec::new();
        clap_mangen::Man::new(command.clone()).render_options_section(&mut options).map_err(failed)?;
        let options = String::from_utf8_lossy(&options).replace(".SH OPTIONS", "");
        page.extend(format!(".SH \"{title}\"\n{about}\n{options}").into_bytes());
    }
    Ok(String::from_utf8_lossy(&page).into_owned())
}

/// Every command with the words that call it, those below others too.
fn commands<'a>(root: &'a clap::Command, words: &str) -> Vec<(String, &'a clap::Command)> {
    let shown = root.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help");
    let with_those_below = |command: &'a clap::Command| {
        let name = format!("{words} {}", command.get_name());
        let below = commands(command, &name);
        std::iter::once((name, command)).chain(below)
    };
    shown.flat_map(with_those_below).collect()
}

/// The `SEGFT_…` variables.
fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
        .filter(|(k, _)| k.starts_with("SEGFT_"))
        .collect()
}

/// The configuration from the flags that every training shares and those of the command.
fn resolve(common: &flags::Common, own: &impl Serialize) -> Result<Config> {
    let json = |flags: serde_json::Result<Value>| flags.map_err(|e| Error::usage(e.to_string()));
    let (mut given, own) = (json(serde_json::to_value(common))?, json(serde_json::to_value(own))?);
    if let (Some(given), Value::Object(own)) = (given.as_object_mut(), own) {
        given.extend(own);
    }
    Config::resolve(common.config.as_deref(), &environment(), &common.set, &given)
}

fn written(path: &Path, answer: &dyn Fn(Value, String) -> Result<()>) -> Result<()> {
    let facts = crate::info::describe(path)?;
    answer(facts.clone(), crate::info::text(&facts))
}

/// Prints a result.
type Answer<'a> = &'a dyn Fn(Value, String) -> Result<()>;

fn fetch(flags: &flags::Fetch, replace: Replace, progress: &Progress, answer: Answer) -> Result<()> {
    use data::fetch::{Hash, ITEMS, Item, Network, fetch};
    let cache = job::base::cache();
    let Some(name) = &flags.name else {
        let rows = ITEMS.iter().map(|i| {
            let (sha256, md5) = match i.hash {
                Some(Hash::Sha256(hash)) => (Some(hash), None),
                Some(Hash::Md5(hash)) => (None, Some(hash)),
                None => (None, None),
            };
            json!({"name": i.name, "what": i.what, "mib": i.mib, "licence": i.licence, "url": i.url, "sha256": sha256,
                "md5": md5, "recorded_sha256": i.recorded(&cache), "cached": i.place(&cache).exists()})
        });
        let line = |i: &Item| {
            let here = if i.place(&cache).exists() { "in the cache" } else { "" };
            let url = i.url.unwrap_or("no address: give the file with --from");
            format!("{:12} {:6} MiB  {:44} {:28} {here}\n             {url}\n", i.name, i.mib, i.what, i.licence)
        };
        return answer(json!({"names": rows.collect::<Vec<_>>()}), ITEMS.iter().map(line).collect());
    };
    let item = Item::find(name)?;
    progress.line(format!("{}: {} (licence: {})", item.name, item.what, item.licence));
    let network = if flags.offline { Network::Never } else { Network::Allowed };
    progress.start("fetching", (item.mib << 20) as usize);
    let at = |done: u64, of: Option<u64>| progress.of(done as usize, of.unwrap_or(item.mib << 20) as usize);
    let place = fetch(item, flags.from.as_deref(), &cache, network, replace, &at);
    progress.end();
    let place = place?;
    let recorded = item.recorded(&cache);
    // Nobody publishes one: what the first file had is what later ones are held to.
    let said = recorded.as_ref().map(|hash| format!("\nSHA-256 {hash}")).unwrap_or_default();
    answer(
        json!({"name": item.name, "path": place.display().to_string(), "sha256": recorded}),
        format!("{}{said}", place.display()),
    )
}

/// What keeps a set from being trained on, in one sentence.
fn checked(found: &data::Found) -> Option<Error> {
    let leaks = found.facts["leaks"].as_array().map_or(0, Vec::len);
    let count = |n: usize, what: &str| (n > 0).then(|| format!("{n} {what}{}", if n == 1 { "" } else { "s" }));
    let no_foreground =
        (!found.has_foreground && found.problems.is_empty()).then(|| "no mask with foreground".to_string());
    let wrong = [
        count(found.problems.len(), "problem").map(|text| format!("{text} with single files")),
        count(leaks, "leak").map(|text| format!("{text} between the sides")),
        no_foreground,
    ];
    let hint = match (found.problems.is_empty(), leaks) {
        (false, _) => "mend these files, or take their cases out",
        (true, 0) => "0 is background: are these the masks?",
        (true, _) => "take one of each pair out, or give both to one side",
    };
    let wrong: Vec<String> = wrong.into_iter().flatten().collect();
    (!wrong.is_empty()).then(|| Error::data(wrong.join(", ")).hint(hint))
}

fn data_command(
    command: DataCommand,
    replace: Replace,
    answer: Answer,
    partly: &dyn Fn(Value, String, Option<Error>) -> Result<()>,
) -> Result<()> {
    match command {
        DataCommand::Make { kind, out, count, seed } => {
            let (kind, default) = match kind.as_str() {
                "phantom" => (phantom::Kind::Pictures, phantom::DEFAULT_PICTURES),
                "phantom-volume" => (phantom::Kind::Volumes, phantom::DEFAULT_VOLUMES),
                other => {
                    let known = ["phantom", "phantom-volume"];
                    let near = nearest(other, known).map(|n| format!("did you mean `{n}`? ")).unwrap_or_default();
                    return Err(Error::usage(format!("no generator called `{other}`"))
                        .hint(format!("{near}generators: {}", known.join(", "))));
                }
            };
            let count = count.unwrap_or(default);
            match replace {
                Replace::Never => phantom::write_set(kind, &out, seed, count)?,
                Replace::Allowed => phantom::replace_set(kind, &out, seed, count)?,
            }
            written(&out, answer)
        }
        DataCommand::Check { path } => {
            let found = data::check(&path)?;
            let failed = checked(&found).map(|error| error.at(path));
            let text = print::checked(&found);
            partly(found.facts, text, failed)
        }
        DataCommand::Split { path, out, seed, offline } => {
            crate::io::check_free(&out, replace)?;
            let request = data::Request {
                dataset: path.display().to_string(),
                seed,
                cache: job::base::cache(),
                offline,
                ..data::Request::default()
            };
            let splits = data::prepare(&request)?;
            let ids = |cases: &[data::Case]| cases.iter().map(|c| c.id.clone()).collect::<Vec<_>>();
            let value = json!({
                "train": ids(&splits.train), "val": ids(&splits.validation), "test": ids(&splits.test),
            });
            print::json(&value, &out.display().to_string())?;
            let text = format!(
                "{}: {} training, {} validation, {} test",
                out.display(),
                splits.train.len(),
                splits.validation.len(),
                splits.test.len()
            );
            answer(value, text)
        }
        DataCommand::List => {
            let sets = data::named::list();
            let text = sets.iter().map(|(name, what)| format!("{name:16} {what}\n")).collect();
            let rows: Vec<Value> = sets.iter().map(|(name, what)| json!({"name": name, "what": what})).collect();
            answer(json!({ "sets": rows }), text)
        }
    }
}
