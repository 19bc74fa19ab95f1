//! The manual's Kubernetes manifest: its parts agree with each other and with the server, and the
//! server starts with its arguments. The tests read it from the page on deployment.
#![cfg(unix)]

use std::time::Duration;

use crate::common::{
    Server, assert_contains, connect, echo_server, exchange, local_address, manual_block,
};
use jiff::fmt::friendly::SpanParser;
use yaml_rust2::{Yaml, YamlLoader};

/// How long the server may take to exit after the shutdown timeout, according to the manual.
const EXIT_TIME: Duration = Duration::from_millis(1500);

/// Returns the manual's Deployment and Service.
fn manifest() -> (Yaml, Yaml) {
    let text = manual_block("deploy", "### Kubernetes", "yaml");
    let documents = YamlLoader::load_from_str(text).expect("the block is YAML");
    let [deployment, service] = documents.try_into().expect("there are two documents");
    assert_eq!(string(&deployment, "kind"), "Deployment");
    assert_eq!(string(&service, "kind"), "Service");
    (deployment, service)
}

/// Returns the node at `path`, which consists of keys and indices separated by dots.
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
        .unwrap_or_else(|| panic!("{path} is not a string"))
}

fn number(node: &Yaml, path: &str) -> i64 {
    at(node, path)
        .as_i64()
        .unwrap_or_else(|| panic!("{path} is not a number"))
}

fn flag(node: &Yaml, path: &str) -> bool {
    at(node, path)
        .as_bool()
        .unwrap_or_else(|| panic!("{path} is neither true nor false"))
}

const POD: &str = "spec.template.spec";
const CONTAINER: &str = "spec.template.spec.containers.0";

/// Starts the server as the cluster would, but on an ephemeral port. Returns the port of the
/// manifest too.
fn start(deployment: &Yaml) -> (Server, i64) {
    let container = at(deployment, CONTAINER);
    let mut command = echo_server();
    if get(deployment, &format!("{POD}.enableServiceLinks")) != Some(&Yaml::Boolean(false)) {
        // The kubelet sets this variable for a Service of this name.
        command.env("ECHO_SERVER_PORT", "tcp://10.96.0.1:54000");
    }
    assert_eq!(
        get(container, "env"),
        None,
        "this test does not set the manifest's variables"
    );
    let mut port = None;
    for argument in at(container, "args").as_vec().expect("a list") {
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

/// Returns the number of a port that the manifest gives as a number or as the name of one of the
/// container's ports.
fn port(deployment: &Yaml, port: &Yaml) -> i64 {
    let Some(name) = port.as_str() else {
        return port.as_i64().expect("a port is a name or a number");
    };
    let ports = at(deployment, &format!("{CONTAINER}.ports"))
        .as_vec()
        .expect("a list");
    let port = ports.iter().find(|port| string(port, "name") == name);
    number(
        port.unwrap_or_else(|| panic!("no port has the name {name}")),
        "containerPort",
    )
}

#[test]
fn selectors_and_ports_agree() {
    let (deployment, service) = manifest();
    let labels = at(&deployment, "spec.template.metadata.labels");
    let spread = format!("{POD}.topologySpreadConstraints.0.labelSelector.matchLabels");
    assert_eq!(at(&deployment, "spec.selector.matchLabels"), labels);
    assert_eq!(at(&deployment, &spread), labels);
    assert_eq!(at(&service, "spec.selector"), labels);

    let (_, server_port) = start(&deployment);
    assert_eq!(
        number(&deployment, &format!("{CONTAINER}.ports.0.containerPort")),
        server_port
    );
    let probed = at(
        &deployment,
        &format!("{CONTAINER}.readinessProbe.tcpSocket.port"),
    );
    assert_eq!(port(&deployment, probed), server_port);
    assert_eq!(
        port(&deployment, at(&service, "spec.ports.0.targetPort")),
        server_port
    );
}

#[test]
fn server_starts_with_the_arguments_and_accepts_a_probe() {
    let (deployment, _) = manifest();
    let (server, _) = start(&deployment);
    // The kubelet probes like this.
    let probe = connect(server.address);
    let address = local_address(&probe);
    drop(probe);
    let line = server.wait_for_disconnect(address);
    assert_contains(&line, "closed by client, 0 bytes echoed");
    exchange(&connect(server.address), b"hello");
}

#[test]
fn grace_period_covers_the_pre_stop_pause_and_the_shutdown() {
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
                .expect("the value is not negative"),
        )
    };
    let pause = seconds(&format!("{CONTAINER}.lifecycle.preStop.sleep.seconds"));
    let grace = seconds(&format!("{POD}.terminationGracePeriodSeconds"));
    assert!(pause > Duration::ZERO);
    assert!(
        grace >= pause + timeout.expect("the line has the timeout") + EXIT_TIME,
        "{line}"
    );
}

#[test]
fn rolling_update_starts_a_new_pod_before_it_ends_an_old_one() {
    let (deployment, _) = manifest();
    assert!(number(&deployment, "spec.replicas") > 1);
    assert_eq!(
        number(&deployment, "spec.strategy.rollingUpdate.maxUnavailable"),
        0
    );
    assert!(number(&deployment, "spec.strategy.rollingUpdate.maxSurge") > 0);
}

#[test]
fn pod_has_no_unneeded_privileges() {
    let (deployment, _) = manifest();
    assert!(flag(
        &deployment,
        &format!("{POD}.securityContext.runAsNonRoot")
    ));
    assert!(number(&deployment, &format!("{POD}.securityContext.runAsUser")) > 0);
    assert!(!flag(
        &deployment,
        &format!("{POD}.automountServiceAccountToken")
    ));
    let context = at(&deployment, &format!("{CONTAINER}.securityContext"));
    assert!(flag(context, "readOnlyRootFilesystem"));
    assert!(!flag(context, "allowPrivilegeEscalation"));
    assert_eq!(string(context, "capabilities.drop.0"), "ALL");
    assert!(get(context, "capabilities.add").is_none());
}

#[test]
fn image_has_the_version_of_this_source() {
    let (deployment, _) = manifest();
    let image = string(&deployment, &format!("{CONTAINER}.image"));
    let version = concat!(":", env!("CARGO_PKG_VERSION"));
    assert!(image.ends_with(version), "{image}");
}
