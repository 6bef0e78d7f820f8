//! Who is whose child: needed to end a whole server at once, as a power cut does, and to know when it is over.

use std::fs;
use std::path::Path;
use std::process::Command;

/// A process, as the system lists it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process {
    pub(super) id: u32,
    pub(super) parent: u32,
    /// It ended, and its parent has not waited for it yet.
    pub(super) ended: bool,
}

/// Every process that the system has a number for.
pub(super) fn all() -> Vec<Process> {
    if Path::new("/proc/self/stat").exists() {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        return entries.filter_map(|entry| from_stat(&fs::read_to_string(entry.path().join("stat")).ok()?)).collect();
    }
    let listed = Command::new("ps").args(["-A", "-o", "pid=,ppid=,state="]).output();
    let listed = listed.map(|listed| String::from_utf8_lossy(&listed.stdout).into_owned()).unwrap_or_default();
    listed.lines().filter_map(from_ps).collect()
}

/// The running children of `parent`.
pub(super) fn children(parent: u32) -> Vec<u32> {
    all().into_iter().filter(|process| process.parent == parent && !process.ended).map(|process| process.id).collect()
}

/// A line of `/proc/PID/stat`: `12 (name, which may hold anything) S 1 ...`.
fn from_stat(line: &str) -> Option<Process> {
    let (id, rest) = line.split_once(" (")?;
    let (state, rest) = rest.rsplit_once(") ")?.1.split_once(' ')?;
    let parent = rest.split(' ').next()?;
    Some(Process { id: id.parse().ok()?, parent: parent.parse().ok()?, ended: state == "Z" || state == "X" })
}

fn from_ps(line: &str) -> Option<Process> {
    let mut words = line.split_whitespace();
    let (id, parent) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(Process { id, parent, ended: words.next()?.starts_with('Z') })
}
