//! The files that are written from the table: what Rust and Cargo need as text of its own, and what people read.

mod code;
mod manifests;
mod pages;

use std::{fs, io, path::Path};

use crate::Service;

/// A file as the table has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratedFile {
    /// Where it lies, from the top of the repository.
    pub path: String,
    /// What it holds.
    pub content: String,
}

/// A part of a file, which begins behind one line and ends before another.
struct Part {
    begin: &'static str,
    end: &'static str,
    content: String,
}

/// Every file that follows from the table, of the repository at `top`.
pub fn files(top: &Path) -> io::Result<Vec<GeneratedFile>> {
    let crates_are_there = |service: &&Service| top.join(service.folder()).join("Cargo.toml").is_file();
    if let Some(missing) = Service::ALL.iter().find(|service| !crates_are_there(service)) {
        // Else Cargo would refuse whatever comes next, this program included.
        let words = format!("{} has no Cargo.toml yet: make the crate of {} first", missing.folder(), missing.name());
        return Err(io::Error::other(words));
    }
    let mut files = vec![
        GeneratedFile { path: "services/kith/src/services.rs".to_owned(), content: code::subcommands() },
        GeneratedFile { path: "crds/src/chatcluster/settings.rs".to_owned(), content: code::settings() },
    ];
    for (path, parts) in [
        ("Cargo.toml", manifests::of_the_workspace()),
        ("services/kith/Cargo.toml", manifests::of_the_binary()),
        ("docs/names.md", pages::names()),
    ] {
        let mut content = fs::read_to_string(top.join(path))?;
        for part in parts {
            content = filled(&content, &part).ok_or_else(|| {
                io::Error::other(format!("{path} lacks the line `{}` or `{}` below it", part.begin, part.end))
            })?;
        }
        files.push(GeneratedFile { path: path.to_owned(), content });
    }
    Ok(files)
}

/// What the text is for each service, one after the other.
fn each(text: impl Fn(Service) -> String) -> String {
    Service::ALL.iter().copied().map(text).collect()
}

/// The text with the part between its two lines made anew.
fn filled(text: &str, part: &Part) -> Option<String> {
    let (head, rest) = text.split_once(&format!("{}\n", part.begin))?;
    let (_, tail) = rest.split_once(&format!("{}\n", part.end))?;
    Some(format!("{head}{}\n{}{}\n{tail}", part.begin, part.content, part.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_stands_between_its_lines_and_the_rest_stays() {
        let part = Part { begin: "# begin", end: "# end", content: "new\n".to_owned() };
        assert_eq!(filled("a\n# begin\nold\n# end\nb\n", &part).as_deref(), Some("a\n# begin\nnew\n# end\nb\n"));
        for without in ["", "# begin\nold\n", "# end\nold\n# begin\n"] {
            assert_eq!(filled(without, &part), None, "{without:?}");
        }
    }
}
