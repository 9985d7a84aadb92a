//! Programs under a terminal: a shell with a job, an editor, a pager.

use libtest_mimic::Failed;

use super::{Program, consecutive, lines};
use crate::engine::Engine;

/// An interactive shell: variables, a background job, a pipeline that is stopped, and its line editor.
pub(super) fn bash(engine: &Engine) -> Result<(), Failed> {
    let shell = ["-qfc", "exec bash --norc --noprofile -i", "/dev/null"];
    let mut bash = Program::start(engine, "script", &shell, &[], |_| Ok(()))?;
    bash.say("PS1='> '; remembered=forty-two\r")?;
    bash.say("(i=0; while true; do i=$((i+1)); echo $i; sleep 0.02; done) >counted &\r")?;
    bash.wait_for("counted", "counting job", |text| lines(text) > 5)?;
    bash.say("{ echo started; sleep 1000; } | cat\r")?;
    bash.wait_for("output", "running pipeline", |text| text.contains("started\r\n"))?;
    bash.say("\x1a")?;
    bash.wait_for("output", "stopped pipeline", |text| text.contains("Stopped"))?;
    // A line that is still being edited.
    bash.say("echo half of")?;
    bash.wait_for("output", "half a line", |text| text.contains("half of"))?;

    bash.carry()?;

    let counted = lines(&std::fs::read_to_string(bash.path("counted"))?);
    bash.wait_for("counted", "job that goes on counting", |text| lines(text) > counted + 5)?;
    bash.say(" the line >edited\r")?;
    bash.wait_for("edited", "line that was being edited", |text| text == "half of the line\n")?;
    bash.say("jobs >jobs; echo $remembered >>jobs\r")?;
    let jobs = bash.wait_for("jobs", "list of jobs", |text| text.contains("forty-two"))?;
    if !(jobs.contains("Running") && jobs.contains("Stopped")) {
        return Err(format!("the jobs are:\n{jobs}").into());
    }
    // Job control still works: a job is ended, the other brought to the front and interrupted.
    bash.say("kill %1; wait %1; echo ended >ended\r")?;
    bash.wait_for("ended", "end of the job", |text| text == "ended\n")?;
    let shown = |text: &str| text.matches("{ echo started").count();
    let before = shown(&std::fs::read_to_string(bash.path("output"))?);
    bash.say("fg %2\r")?;
    bash.wait_for("output", "pipeline in front", |text| shown(text) > before)?;
    // It may not be in front yet when the first of these is typed. What stays is the shell and its terminal.
    for _ in 0..100 {
        bash.say("\x03")?;
        std::thread::sleep(std::time::Duration::from_millis(50));
        if bash.family.members().len() <= 2 {
            break;
        }
    }
    bash.say("echo back >back\r")?;
    bash.wait_for("back", "prompt after the interruption", |text| text == "back\n")?;
    consecutive(&std::fs::read_to_string(bash.path("counted"))?, counted)?;
    bash.say("exit\r")?;
    bash.wait_end()
}

/// An editor in the middle of an insertion.
pub(super) fn vim(engine: &Engine) -> Result<(), Failed> {
    let editor = ["-qfc", "exec vim -N -u NONE -i NONE -n text", "/dev/null"];
    let mut vim = Program::start(engine, "script", &editor, &[], |directory| {
        std::fs::write(directory.join("text"), "first\nlast\n")
    })?;
    vim.wait_for("output", "picture of the text", |text| text.contains("first") && text.contains("last"))?;
    vim.say("obefore the checkpoint")?;
    vim.wait_for("output", "picture of the insertion", |text| text.contains("before the checkpoint"))?;

    vim.carry()?;

    // Still inserting; then undo, redo and a redrawn screen.
    vim.say(" and after\x1b")?;
    vim.wait_for("output", "picture of what is typed", |text| text.contains("and after"))?;
    let drawn = std::fs::read_to_string(vim.path("output"))?.matches("last").count();
    vim.say("\x0c")?;
    vim.wait_for("output", "redrawn screen", |text| text.matches("last").count() > drawn)?;
    vim.say("u\x12:wq\r")?;
    vim.wait_end()?;
    let text = std::fs::read_to_string(vim.path("text"))?;
    match text.as_str() {
        "first\nbefore the checkpoint and after\nlast\n" => Ok(()),
        other => Err(format!("the text is {other:?}").into()),
    }
}

/// A pager in the middle of a file.
pub(super) fn less(engine: &Engine) -> Result<(), Failed> {
    let mut less = Program::start(engine, "script", &["-qfc", "exec less text", "/dev/null"], &[], |directory| {
        let text: String = (1..=5000).map(|number| format!("this is line {number}.\n")).collect();
        std::fs::write(directory.join("text"), text)
    })?;
    less.wait_for("output", "first page", |text| text.contains("this is line 10."))?;
    less.say("2000g")?;
    less.wait_for("output", "page in the middle", |text| text.contains("this is line 2000."))?;

    less.carry()?;

    less.say("/line 3456\r")?;
    less.wait_for("output", "line that was searched for", |text| text.contains("this is") && text.contains("3460."))?;
    less.say("G")?;
    less.wait_for("output", "last page", |text| text.contains("this is line 5000."))?;
    less.say("q")?;
    less.wait_end()
}
