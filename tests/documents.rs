//! The documents that the binaries print: help, man pages and completions. None may lack an option.

use std::collections::BTreeSet;

use crate::common::{
    assert_contains, assert_silent_exit, command, count_lines, pipe_without_reader, stdout_of,
};

#[cfg(feature = "client")]
const BINARIES: [&str; 2] = [
    env!("CARGO_BIN_EXE_echo-server"),
    env!("CARGO_BIN_EXE_echo-client"),
];
#[cfg(not(feature = "client"))]
const BINARIES: [&str; 1] = [env!("CARGO_BIN_EXE_echo-server")];

const SHELLS: [&str; 5] = ["bash", "elvish", "fish", "powershell", "zsh"];

/// Returns what a successful run prints.
fn printed(program: &str, arguments: &[&str]) -> String {
    stdout_of(command(program).args(arguments), 0)
}

/// Returns the long options in a help text.
fn options(help: &str) -> BTreeSet<String> {
    let words = help.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    words
        .filter(|word| word.starts_with("--") && word.len() > 2)
        .map(str::to_owned)
        .collect()
}

/// Returns the long options of a binary and its commands.
fn all_options(program: &str) -> BTreeSet<String> {
    let help = printed(program, &["--help"]);
    let mut all = options(&help);
    if help.contains("Commands:") {
        for name in ["test", "bench"] {
            all.append(&mut options(&printed(program, &[name, "--help"])));
        }
    }
    assert!(all.len() > 5, "{all:?}");
    all
}

#[test]
fn help_ends_with_examples_and_fits_a_terminal() {
    for program in BINARIES {
        let version = printed(program, &["-V"]);
        assert_contains(&version, env!("CARGO_PKG_VERSION"));
        let help = printed(program, &["--help"]);
        assert_contains(&help, "Usage: echo-");
        let (_, examples) = help.split_once("\nExamples:\n").expect("examples");
        assert!(count_lines(examples, "  echo-") >= 2, "{help}");
        if program == BINARIES[0] {
            for words in ["-vv: the bytes too", "-qqq: nothing", "Exit codes: 0"] {
                assert_contains(&help, words);
            }
        }
        let widest = help.lines().map(|line| line.chars().count()).max();
        assert!(widest.is_some_and(|widest| widest <= 100), "{help}");
    }
}

/// Returns whether `text` contains `word`, and not only as the beginning of a longer word.
fn has_word(text: &str, word: &str) -> bool {
    let ends = |rest: &str| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '-');
    text.match_indices(word)
        .any(|(position, _)| ends(&text[position + word.len()..]))
}

#[test]
fn man_page_has_every_option() {
    for program in BINARIES {
        let page = printed(program, &["--man"])
            .replace("\\fR", "")
            .replace('\\', "");
        assert_contains(&page, ".TH echo-");
        for option in all_options(program) {
            assert!(has_word(&page, &option), "{option}: {page}");
        }
        for section in [".SH EXAMPLES\n", ".SH NOTES\n"] {
            assert_contains(&page, section);
        }
        let is_server = page.contains(".TH echo-server");
        assert_eq!(
            page.contains(".SH ENVIRONMENT\n.TP\nECHO_SERVER_HOST\n"),
            is_server,
            "{page}"
        );
        assert_eq!(page.contains("Sets --busy-poll."), is_server, "{page}");
    }
}

#[test]
fn completions_for_every_shell_have_every_option() {
    for program in BINARIES {
        let options = all_options(program);
        for shell in SHELLS {
            let script = printed(program, &["--completions", shell]);
            for option in &options {
                // A fish script has the options without dashes.
                let fish = format!("-l {}", option.trim_start_matches('-'));
                let name = if shell == "fish" { &fish } else { option };
                assert!(has_word(&script, name), "{shell}, {option}: {script}");
            }
        }
    }
}

#[test]
fn environment_variables_do_not_affect_documents() {
    let page = printed(BINARIES[0], &["--man"]);
    let variables: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("ECHO_SERVER_"))
        .collect();
    assert!(variables.len() > 5, "{page}");
    for program in BINARIES {
        for document in ["--man", "--completions=bash"] {
            let document_alone = printed(program, &[document]);
            let mut command = command(program);
            command.envs(variables.iter().map(|variable| (variable, "invalid")));
            assert_eq!(
                stdout_of(command.args([document, "--port", "7"]), 0),
                document_alone
            );
        }
    }
}

#[test]
fn readme_has_every_option_of_the_server() {
    let readme = include_str!("../README.md");
    let (_, section) = readme
        .split_once("\n## Options\n")
        .expect("the README has this section");
    let (section, _) = section
        .split_once("\n## ")
        .expect("another section follows");
    let mut options = all_options(BINARIES[0]);
    // The README has these by their short names.
    assert!(options.remove("--verbose") && options.remove("--quiet"));
    for option in options {
        assert!(has_word(section, &option), "{option}");
    }
}

/// Runs a real bash. The script once had every option, but did not find the command's.
#[test]
#[cfg(all(target_os = "linux", feature = "client"))]
fn bash_completes_the_options_of_a_command() {
    let program = env!("CARGO_BIN_EXE_echo-client");
    let script = printed(program, &["--completions", "bash"]);
    let complete = r#"
        COMP_WORDS=(echo-client bench --mo) COMP_CWORD=2
        _echo__client echo-client --mo bench
        echo "${COMPREPLY[@]}""#;
    let reply = printed("bash", &["-c", &format!("{script}\n{complete}")]);
    assert_eq!(reply.trim(), "--mode");
}

#[test]
fn pager_that_exits_early_is_no_failure() {
    for arguments in [
        &["--man"][..],
        &["--completions", "zsh"],
        &["--completions", "fish"],
    ] {
        for program in BINARIES {
            let mut command = command(program);
            command.args(arguments).stdout(pipe_without_reader());
            let output = command.output().expect("the program can be spawned");
            assert_silent_exit(&output, 0);
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn full_disk_is_an_error() {
    let completions = SHELLS.map(|shell| format!("--completions={shell}"));
    for program in BINARIES {
        for document in completions.iter().map(String::as_str).chain(["--man"]) {
            let mut command = command(program);
            command.arg(document).stdout(crate::common::full_disk());
            let output = command.output().expect("the program can be spawned");
            let error = crate::common::error_line(&output);
            assert_contains(&error, "cannot write to stdout: ");
        }
    }
}
