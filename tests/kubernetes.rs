//! What the README has for Kubernetes, taken from there: what must agree in it agrees, and the
//! server takes what the cluster would give it.
#![cfg(unix)]

mod common;

use std::time::Duration;

use common::{Server, connect, echo_server, exchange, local_address, readme_block};
use jiff::fmt::friendly::SpanParser;
use yaml_rust2::{Yaml, YamlLoader};

/// What a stop may take beyond its timeout, as the README says.
const LAST_WORDS: Duration = Duration::from_millis(1500);

/// The README's Deployment and Service.
fn manifest() -> (Yaml, Yaml) {
    let text = readme_block("## Growing past one machine", "yaml");
    let documents = YamlLoader::load_from_str(text).expect("it is YAML");
    let [deployment, service] = documents.try_into().expect("there are two documents");
    assert_eq!(string(&deployment, "kind"), "Deployment");
    assert_eq!(string(&service, "kind"), "Service");
    (deployment, service)
}

/// What stands at `path`: keys and indices, with dots between them.
fn get<'a>(node: &'a Yaml, path: &str) -> Option<&'a Yaml> {
    let found = path
        .split('.')
        .fold(node, |node, step| match step.parse::<usize>() {
            Ok(index) => &node[index],
            Err(_) => &node[step],
        });
    (!found.is_badvalue()).then_some(found)
}

fn at<'a>(node: &'a Yaml, path: &str) -> &'a Yaml {
    get(node, path).unwrap_or_else(|| panic!("there is no {path}"))
}

fn string<'a>(node: &'a Yaml, path: &str) -> &'a str {
    at(node, path)
        .as_str()
        .unwrap_or_else(|| panic!("{path} is no string"))
}

fn number(node: &Yaml, path: &str) -> i64 {
    at(node, path)
        .as_i64()
        .unwrap_or_else(|| panic!("{path} is no number"))
}

fn flag(node: &Yaml, path: &str) -> bool {
    at(node, path)
        .as_bool()
        .unwrap_or_else(|| panic!("{path} is neither true nor false"))
}

const POD: &str = "spec.template.spec";
const CONTAINER: &str = "spec.template.spec.containers.0";

/// The server as the cluster would start it, but on a free port; and the port that it would have.
fn start(deployment: &Yaml) -> (Server, i64) {
    let container = at(deployment, CONTAINER);
    let mut command = echo_server();
    if get(deployment, &format!("{POD}.enableServiceLinks")) != Some(&Yaml::Boolean(false)) {
        // What the kubelet sets for a Service of this name.
        command.env("ECHO_SERVER_PORT", "tcp://10.96.0.1:54000");
    }
    assert_eq!(
        get(container, "env"),
        None,
        "this test would have to set it"
    );
    let mut port = None;
    for argument in at(container, "args").as_vec().expect("it is a list") {
        let argument = argument.as_str().expect("an argument is a string");
        match argument.strip_prefix("--port=") {
            Some(value) => assert_eq!(port.replace(value.parse().expect("a port")), None),
            None => drop(command.arg(argument)),
        }
    }
    (
        Server::spawn(command.arg("--port=0")),
        port.expect("the port is among the arguments"),
    )
}

/// The number of the port that is meant by a number or by the name of one of the container's.
fn port(deployment: &Yaml, named: &Yaml) -> i64 {
    let Some(name) = named.as_str() else {
        return named.as_i64().expect("a port is a name or a number");
    };
    let ports = at(deployment, &format!("{CONTAINER}.ports"))
        .as_vec()
        .expect("it is a list");
    let port = ports.iter().find(|port| string(port, "name") == name);
    number(
        port.unwrap_or_else(|| panic!("no port is called {name}")),
        "containerPort",
    )
}

#[test]
fn the_selectors_and_the_ports_agree() {
    let (deployment, service) = manifest();
    let labels = at(&deployment, "spec.template.metadata.labels");
    let spread = format!("{POD}.topologySpreadConstraints.0.labelSelector.matchLabels");
    assert_eq!(at(&deployment, "spec.selector.matchLabels"), labels);
    assert_eq!(at(&deployment, &spread), labels);
    assert_eq!(at(&service, "spec.selector"), labels);

    let (_, listens) = start(&deployment);
    assert_eq!(
        number(&deployment, &format!("{CONTAINER}.ports.0.containerPort")),
        listens
    );
    let probed = at(
        &deployment,
        &format!("{CONTAINER}.readinessProbe.tcpSocket.port"),
    );
    assert_eq!(port(&deployment, probed), listens);
    assert_eq!(
        port(&deployment, at(&service, "spec.ports.0.targetPort")),
        listens
    );
}

#[test]
fn the_server_starts_with_the_arguments_and_takes_a_probe_for_what_it_is() {
    let (deployment, _) = manifest();
    let (server, _) = start(&deployment);
    // As the kubelet does it.
    let probe = connect(server.address);
    let address = local_address(&probe);
    drop(probe);
    let departure = server.wait_for_disconnect(address);
    assert!(
        departure.contains("closed by client, 0 bytes echoed"),
        "{departure}"
    );
    exchange(&connect(server.address), b"hello");
}

#[test]
fn the_grace_period_is_long_enough_for_the_pause_and_the_stop() {
    let (deployment, _) = manifest();
    let (mut server, _) = start(&deployment);
    assert_eq!(server.shut_down().code(), Some(0));
    let line = server.wait_for_log("shutting down: waiting up to ");
    let timeout = line
        .split(' ')
        .find_map(|word| SpanParser::new().parse_unsigned_duration(word).ok());
    let seconds = |path: &str| {
        Duration::from_secs(
            number(&deployment, path)
                .try_into()
                .expect("it is not negative"),
        )
    };
    let pause = seconds(&format!("{CONTAINER}.lifecycle.preStop.sleep.seconds"));
    let grace = seconds(&format!("{POD}.terminationGracePeriodSeconds"));
    assert!(pause > Duration::ZERO);
    assert!(
        grace >= pause + timeout.expect("the log has it") + LAST_WORDS,
        "{line}"
    );
}

#[test]
fn a_pod_goes_only_when_another_is_there_and_has_no_rights_that_it_does_not_need() {
    let (deployment, _) = manifest();
    assert!(number(&deployment, "spec.replicas") > 1);
    assert_eq!(
        number(&deployment, "spec.strategy.rollingUpdate.maxUnavailable"),
        0
    );
    assert!(number(&deployment, "spec.strategy.rollingUpdate.maxSurge") > 0);

    assert!(flag(
        &deployment,
        &format!("{POD}.securityContext.runAsNonRoot")
    ));
    assert!(number(&deployment, &format!("{POD}.securityContext.runAsUser")) > 0);
    assert!(!flag(
        &deployment,
        &format!("{POD}.automountServiceAccountToken")
    ));
    let rights = at(&deployment, &format!("{CONTAINER}.securityContext"));
    assert!(flag(rights, "readOnlyRootFilesystem"));
    assert!(!flag(rights, "allowPrivilegeEscalation"));
    assert_eq!(string(rights, "capabilities.drop.0"), "ALL");
    assert!(get(rights, "capabilities.add").is_none());
}

#[test]
fn the_image_has_the_version_of_this_source() {
    let (deployment, _) = manifest();
    let image = string(&deployment, &format!("{CONTAINER}.image"));
    let version = concat!(":", env!("CARGO_PKG_VERSION"));
    assert!(image.ends_with(version), "{image}");
}
