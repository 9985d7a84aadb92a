//! Random trees: scripts for the workload `random/tree`, each built, checkpointed, restored and compared by fingerprint.
//!
//! What fails is made as small as it can be and remembered in tests/regressions/random.txt, from which every later run
//! begins. PROPTEST_CASES says how many new ones are tried.

use std::fmt;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner};

use crate::catalogue::declaration;
use crate::engine::Engine;
use crate::workload::{Failure, Workload};

/// New trees in a run that is not told otherwise.
const CASES: u32 = 40;
/// Trees tried on the way to a smaller one that fails too.
const SHRINKING: u32 = 200;
const REGRESSIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/regressions/random.txt");

/// What a process does.
#[derive(Debug, Clone)]
enum Step {
    /// A line of the script.
    Line(String),
    /// A child with steps of its own.
    Child(Vec<Step>),
}

/// The script as the workload reads it.
#[derive(Clone)]
struct Script(Vec<Step>);

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn write(steps: &[Step], f: &mut fmt::Formatter<'_>) -> fmt::Result {
            for step in steps {
                match step {
                    Step::Line(line) => writeln!(f, "{line}")?,
                    Step::Child(steps) => {
                        writeln!(f, "fork")?;
                        write(steps, f)?;
                        writeln!(f, "end")?;
                    }
                }
            }
            Ok(())
        }
        write(&self.0, f)
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the script\n{self}")
    }
}

/// A line: a word, and numbers below these.
fn line(word: &'static str, below: &'static [u32]) -> BoxedStrategy<Step> {
    let numbers: Vec<_> = below.iter().map(|end| 0..*end).collect();
    let text = move |numbers: Vec<u32>| {
        let numbers: String = numbers.iter().map(|number| format!(" {number}")).collect();
        Step::Line(format!("{word}{numbers}"))
    };
    numbers.prop_map(text).boxed()
}

fn step() -> impl Strategy<Value = Step> {
    // Mappings have a page at least.
    let map = (1u32..40, 0u32..4, 0u32..2, 0u32..100, 0u32..8).prop_map(|(pages, prot, shared, seed, advice)| {
        Step::Line(format!("map {pages} {prot} {shared} {seed} {advice}"))
    });
    prop_oneof![
        5 => map,
        2 => line("unmap", &[20]),
        4 => line("file", &[30_000, 32, 100]),
        2 => line("pipe", &[4000]),
        4 => line("special", &[6, 50]),
        2 => line("dup", &[20, 30, 2]),
        1 => line("epoll", &[20]),
        1 => line("timerfd", &[1000, 50]),
        2 => line("posix", &[3, 1000, 50]),
        1 => line("itimer", &[1000, 50]),
        2 => line("queue", &[20, 1000]),
        2 => line("action", &[20, 15]),
        2 => line("thread", &[100]),
        1 => line("zombie", &[256]),
        1 => line("setsid", &[]),
        1 => line("setpgid", &[]),
        3 => line("attribute", &[8, 200]),
    ]
}

fn tree() -> impl Strategy<Value = Script> {
    let steps = prop::collection::vec(step(), 0..12);
    let nested = steps.prop_recursive(3, 40, 3, |inner| {
        let child = inner.prop_map(Step::Child);
        prop::collection::vec(prop_oneof![3 => step(), 1 => child], 0..12)
    });
    nested.prop_map(Script)
}

fn carried(engine: &Engine, script: &Script) -> Result<(), Failure> {
    let mut declared = declaration("random/tree").ok_or_else(|| Failure {
        workload: "random/tree".to_owned(),
        step: "start",
        what: "there is no such workload".to_owned(),
        logs: String::new(),
    })?;
    declared.script = Some(script.to_string());
    let mut workload = Workload::start_with(declared, (engine.clone(), engine.clone()), false)?;
    workload.fingerprint();
    workload.checkpoint()?;
    workload.restore()?;
    workload.compare()?;
    workload.finish()
}

/// `random::trees`. The whole `main` of a test program.
pub fn suite(own: &Engine) -> ExitCode {
    let own = own.clone();
    let trees = move || {
        let config = Config {
            cases: std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES),
            max_shrink_iters: SHRINKING,
            failure_persistence: Some(Box::new(FileFailurePersistence::Direct(REGRESSIONS))),
            ..Config::default()
        };
        let outcome = TestRunner::new(config)
            .run(&tree(), |script| carried(&own, &script).map_err(|failure| TestCaseError::fail(failure.to_string())));
        outcome.map_err(|error| error.to_string().into())
    };
    libtest_mimic::run(&Arguments::from_args(), vec![Trial::test("random::trees", trees)]).exit_code()
}
