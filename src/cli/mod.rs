//! The command line: flags, dispatch, and how results and errors are printed.

mod flags;
mod print;

use crate::config::Config;
use crate::data;
use crate::error::{Error, Result};
use crate::io::Replace;
use crate::job;
use crate::phantom;
use crate::progress::{Progress, Voice};
use crate::run::Run;
use crate::tune::patch::Direction;
use crate::tune::selection::{Overlap, Selection};
use clap::{CommandFactory, Parser};
use flags::{Cli, Command, DataCommand, PatchCommand};
use serde::Serialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Parses the arguments, runs the command, prints, and gives the exit code.
pub fn main() -> ExitCode {
    // A closed pipe (`segft info … | head`) ends the program quietly, as for other tools.
    let arguments: Vec<String> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
    let wants_json = arguments.iter().any(|a| a == "--json");
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            if wants_json && error.use_stderr() {
                let text = error.render().to_string();
                let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_string();
                print::stdout(&Error::usage(first).json().to_string());
            }
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    std::panic::set_hook(Box::new(|info| {
        eprintln!("error: segft met a defect of its own: {info}");
        eprintln!("  hint: please report it, with the command and the run's log.txt");
    }));
    let json = cli.global.json.clone();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(cli)));
    match outcome {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            print::error(&error);
            if let Some(to) = json {
                let _ = print::json(&error.json(), &to);
            }
            ExitCode::from(error.kind.exit_code())
        }
        Err(_) => ExitCode::from(1),
    }
}

fn run(cli: Cli) -> Result<()> {
    let global = cli.global;
    let progress = Progress::new(if global.quiet { Voice::Quiet } else { Voice::Normal });
    let replace = if global.force { Replace::Allowed } else { Replace::Never };
    // Results go to stdout as text, or as one JSON object to where `--json` says.
    let answer = |value: Value, text: String| match &global.json {
        Some(to) => print::json(&value, to),
        None => {
            print::stdout(&text);
            Ok(())
        }
    };
    match cli.command {
        Command::Train(flags) => {
            if let Some(run) = &flags.resume {
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
        Command::Select(flags) => {
            if let Some(pair) = &flags.diff {
                let [a, b] = [Selection::load(&pair[0])?, Selection::load(&pair[1])?];
                let overlap = Overlap::of(&a, &b);
                return answer(print::overlap_json(&overlap), print::overlap(&overlap));
            }
            let mut config = resolve(&flags.common, &flags.one)?;
            let to = config.out.take().unwrap_or_else(|| PathBuf::from("selection.safetensors"));
            crate::io::check_free(&to, replace)?;
            crate::device::limit_threads(config.threads)?;
            job::select::run(&config, &to, &progress)?;
            let facts = crate::info::describe(&to)?;
            answer(facts.clone(), crate::info::text(&facts))
        }
        Command::Compare(flags) => {
            let config = resolve(&flags.common, &json!({ "steps": flags.steps, "out": flags.out }))?;
            crate::device::limit_threads(config.threads)?;
            let request = flags.request(config)?;
            if let Some(path) = &flags.csv {
                crate::io::check_free(path, replace)?;
            }
            if !flags.report {
                job::compare::fill(&request, replace, &progress)?;
            }
            let table = job::compare::read(&request)?;
            if let Some(path) = &flags.csv {
                let text = table.csv()?;
                crate::io::write_atomic(path, |to| to.write_all(text.as_bytes()))?;
            }
            answer(table.json()?, table.markdown())
        }
        Command::Predict(flags) => {
            crate::device::limit_threads(flags.threads)?;
            let request = flags.request(replace);
            let (done, failed) = job::predict::run(&request, &progress)?;
            answer(json!({ "cases": done, "failed": failed.as_ref().map(|e| e.message.clone()) }), String::new())?;
            failed.map_or(Ok(()), Err)
        }
        Command::Score(flags) => {
            crate::device::limit_threads(flags.threads)?;
            let (what, options) = flags.request()?;
            let report = job::score::run(&what, &options)?;
            if let Some(path) = &flags.csv {
                crate::io::check_free(path, replace)?;
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
        Command::Patch(command) => match command {
            PatchCommand::Apply { base, patch, to } => {
                job::export::turn(&base, &patch, Direction::Apply, &to, replace)?;
                written(&to, &answer)
            }
            PatchCommand::Revert { merged, patch, to } => {
                job::export::turn(&merged, &patch, Direction::Revert, &to, replace)?;
                written(&to, &answer)
            }
        },
        Command::Fetch(flags) => fetch(&flags, &progress, &answer),
        Command::Data(command) => data_command(command, replace, &answer),
        Command::Pretrain(flags) => {
            crate::device::limit_threads(flags.threads)?;
            let made = job::pretrain::run(&flags.request(), replace, &progress)?;
            answer(made.clone(), crate::info::text(&made))
        }
        Command::Bench(flags) => {
            crate::device::limit_threads(flags.threads)?;
            let figures = job::bench::run(&flags.request())?;
            answer(figures.clone(), figures.to_string())
        }
        Command::Doctor => {
            let facts = print::doctor();
            answer(facts.clone(), crate::info::text(&facts))
        }
        Command::Completions { shell } => {
            let mut bytes = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "segft", &mut bytes);
            print::stdout(&String::from_utf8_lossy(&bytes));
            Ok(())
        }
    }
}

/// The configuration from the flags that every training shares and those of the command.
fn resolve(common: &flags::Common, own: &impl Serialize) -> Result<Config> {
    let environment: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
        .filter(|(k, _)| k.starts_with("SEGFT_"))
        .collect();
    let json = |flags: serde_json::Result<Value>| flags.map_err(|e| Error::usage(e.to_string()));
    let (mut given, own) = (json(serde_json::to_value(common))?, json(serde_json::to_value(own))?);
    if let (Some(given), Value::Object(own)) = (given.as_object_mut(), own) {
        given.extend(own);
    }
    Config::resolve(common.config.as_deref(), &environment, &common.set, &given)
}

fn written(path: &Path, answer: &dyn Fn(Value, String) -> Result<()>) -> Result<()> {
    let facts = crate::info::describe(path)?;
    answer(facts.clone(), crate::info::text(&facts))
}

fn fetch(flags: &flags::Fetch, progress: &Progress, answer: &dyn Fn(Value, String) -> Result<()>) -> Result<()> {
    use data::fetch::{ITEMS, Item, Network, fetch};
    let cache = job::base::cache();
    let Some(name) = &flags.name else {
        let rows = ITEMS.iter().map(|i| {
            json!({"name": i.name, "what": i.what, "mib": i.mib, "licence": i.licence, "url": i.url, "sha256": i.sha256,
                "cached": i.place(&cache).exists()})
        });
        let line = |i: &Item| {
            let here = if i.place(&cache).exists() { "in the cache" } else { "" };
            format!("{:10} {:6} MiB  {:44} {:28} {here}\n           {}\n", i.name, i.mib, i.what, i.licence, i.url)
        };
        return answer(Value::Array(rows.collect()), ITEMS.iter().map(line).collect());
    };
    let item = Item::find(name)?;
    progress.line(format!("{}: {} (licence: {})", item.name, item.what, item.licence));
    let network = if flags.offline { Network::Never } else { Network::Allowed };
    progress.start("fetching", (item.mib << 20) as usize);
    let place = fetch(item, flags.from.as_deref(), &cache, network, &|done, _| progress.at(done as usize, ""));
    progress.end();
    let place = place?;
    answer(json!({"name": item.name, "path": place.display().to_string()}), place.display().to_string())
}

fn data_command(command: DataCommand, replace: Replace, answer: &dyn Fn(Value, String) -> Result<()>) -> Result<()> {
    match command {
        DataCommand::Make { kind, out, count, seed } => {
            let (kind, default) = match kind.as_str() {
                "phantom" => (phantom::Kind::Pictures, phantom::DEFAULT_PICTURES),
                "phantom-volume" => (phantom::Kind::Volumes, phantom::DEFAULT_VOLUMES),
                other => {
                    return Err(Error::usage(format!("no generator called `{other}`"))
                        .hint("generators: phantom, phantom-volume"));
                }
            };
            phantom::write_set(kind, &out, seed, count.unwrap_or(default))?;
            written(&out, answer)
        }
        DataCommand::Check { path } => {
            let facts = data::facts(&path)?;
            let leaks = facts["leaks"].as_array().map(Vec::len).unwrap_or(0);
            answer(facts.clone(), crate::info::text(&facts))?;
            match leaks {
                0 => Ok(()),
                n => Err(Error::data(format!("{n} leaks between the sides")).at(path)),
            }
        }
        DataCommand::Split { path, out, seed } => {
            crate::io::check_free(&out, replace)?;
            let request = data::Request { dataset: path.display().to_string(), seed, ..data::Request::default() };
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
            answer(json!(sets.iter().map(|(name, what)| json!({"name": name, "what": what})).collect::<Vec<_>>()), text)
        }
    }
}
