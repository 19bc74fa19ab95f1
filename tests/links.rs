//! Links in the README, the manual and the documents in `.github` point to files and headings that
//! exist, on GitHub and in rustdoc. The functions that the manual names exist too.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use pulldown_cmark::{BrokenLink, Event, LinkType, Options, Parser, Tag, TagEnd};

const MANUAL: &str = "src/manual";

#[test]
fn local_links_point_to_files_and_headings() {
    if !root().join(".github").exists() {
        crate::common::skip(format_args!("a packaged crate has no .github"));
        return;
    }
    let mut broken = Document::read(PathBuf::from("README.md")).broken_links();
    for document in documents(MANUAL).chain(documents(".github")) {
        broken.extend(document.broken_links());
    }
    assert!(broken.is_empty(), "broken links: {broken:#?}");
}

/// rustdoc resolves these links with the definitions in `src/manual.rs`, and checks that their modules
/// exist. It takes any other link to a file as it is, and the file is not there.
#[test]
fn pages_of_the_manual_link_to_each_other_by_name() {
    let definitions = include_str!("../src/manual.rs");
    let mut links = 0;
    for document in documents(MANUAL) {
        for link in &document.links {
            if link.destination.starts_with("https:") || link.destination.starts_with('#') {
                continue;
            }
            let (path, Link { name, destination }) = (document.path.display(), link);
            assert_eq!(*destination, format!("{name}.md"), "[{name}] in {path}");
            let definition = format!("\"[{name}]: super::{name}\"");
            assert!(definitions.contains(&definition), "[{name}] in {path}");
            links += 1;
        }
    }
    assert_ne!(links, 0);
}

/// Returns the text of all Rust files in the directory.
fn source(directory: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(directory).expect("the source exists") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            text += &source(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text += &fs::read_to_string(&path).expect("it is text");
        }
    }
    text
}

#[test]
fn functions_that_internals_names_exist() {
    let source = source(&root().join("src"));
    let page = include_str!("../src/manual/internals.md");
    let (mut functions, mut missing) = (0, Vec::new());
    for code in page.split('`').skip(1).step_by(2) {
        if let Some((type_name, function)) = code.split_once("::")
            && !type_name.is_empty()
        {
            functions += 1;
            if !source.contains(&format!("fn {function}(")) {
                missing.push(code);
            }
        }
    }
    assert!(functions > 10, "{functions}");
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn anchors_follow_the_rules_of_github() {
    let text =
        "# Graceful shutdown\n## `echo-client`: what's new?\n## a_b & c\n# Graceful shutdown\n";
    let document = Document::parse(PathBuf::new(), text);
    let expected = [
        "graceful-shutdown",
        "echo-client-whats-new",
        "a_b--c",
        "graceful-shutdown-1",
    ];
    assert_eq!(document.anchors, expected.map(str::to_owned).into());
}

#[test]
fn broken_links_are_found() {
    let text = "# One\n[a](#one) [b](#two) [c](missing.md) [d](../README.md#no-such-heading) \
                [e][undefined] ![f](missing.svg) [g](../README.md#license)\n";
    let document = Document::parse(PathBuf::from("src/test.md"), text);
    let expected = [
        "src/test.md: [e][undefined]",
        "src/test.md: #two",
        "src/test.md: missing.md",
        "src/test.md: ../README.md#no-such-heading",
        "src/test.md: missing.svg",
    ];
    assert_eq!(document.broken_links(), expected);
}

/// Reads the Markdown files of a directory.
fn documents(directory: &str) -> impl Iterator<Item = Document> {
    let entries = fs::read_dir(root().join(directory)).expect("the directory can be read");
    let names = entries.map(|entry| entry.expect("the directory can be read").file_name());
    let paths = names.map(move |name| Path::new(directory).join(name));
    paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .map(Document::read)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

struct Document {
    /// Relative to the root of the repository.
    path: PathBuf,
    anchors: HashSet<String>,
    links: Vec<Link>,
    /// References such as `[text][name]` without a definition. GitHub shows them as text.
    undefined: Vec<String>,
}

struct Link {
    /// The name of a definition; empty if the link has its destination in the text.
    name: String,
    destination: String,
}

impl Document {
    fn read(path: PathBuf) -> Self {
        let text = fs::read_to_string(root().join(&path));
        Self::parse(path, &text.expect("the document can be read"))
    }

    fn parse(path: PathBuf, text: &str) -> Self {
        let (mut anchors, mut links, mut undefined) = (HashSet::new(), Vec::new(), Vec::new());
        let mut note_undefined = |link: BrokenLink<'_>| {
            // Others, such as `[OPTIONS]`, are most likely no links.
            if link.link_type == LinkType::Reference {
                undefined.push(text[link.span].to_owned());
            }
            None
        };
        let options = Options::ENABLE_TABLES;
        let events =
            Parser::new_with_broken_link_callback(text, options, Some(&mut note_undefined));
        let mut heading = None;
        for event in events {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::Text(text) | Event::Code(text) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                }
                Event::End(TagEnd::Heading(_)) => {
                    let anchor = anchor(&heading.take().unwrap_or_default());
                    let repeated = (1..).map(|n| format!("{anchor}-{n}"));
                    let mut candidates = std::iter::once(anchor.clone()).chain(repeated);
                    candidates.find(|candidate| anchors.insert(candidate.clone()));
                }
                Event::Start(Tag::Link { dest_url, id, .. } | Tag::Image { dest_url, id, .. }) => {
                    links.push(Link {
                        name: id.into_string(),
                        destination: dest_url.into_string(),
                    });
                }
                _ => {}
            }
        }
        Self {
            path,
            anchors,
            links,
            undefined,
        }
    }

    /// Returns the links whose file or heading does not exist.
    fn broken_links(&self) -> Vec<String> {
        let broken = self.links.iter().map(|link| link.destination.as_str());
        let broken = broken.filter(|destination| !self.reaches(destination));
        let broken = self.undefined.iter().map(String::as_str).chain(broken);
        broken
            .map(|link| format!("{}: {link}", self.path.display()))
            .collect()
    }

    fn reaches(&self, destination: &str) -> bool {
        if destination.starts_with("https://") {
            return true;
        }
        let (file, anchor) = destination.split_once('#').unwrap_or((destination, ""));
        if file.is_empty() {
            return self.anchors.contains(anchor);
        }
        let directory = self.path.parent().expect("a file is in a directory");
        let path = directory.join(file);
        if !root().join(&path).exists() {
            return false;
        }
        anchor.is_empty() || Self::read(path).anchors.contains(anchor)
    }
}

/// Returns the anchor that GitHub makes for a heading: lower case, hyphens for spaces, no punctuation.
fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    let heading = heading.to_lowercase();
    heading
        .chars()
        .filter(kept)
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}
