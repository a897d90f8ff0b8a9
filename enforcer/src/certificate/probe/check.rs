//! The connections of one check, and what is made of them.

use futures_util::future::{join, join_all};
use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, DnsName};
use tokio::time::Instant;

use super::super::finding::{Accepted, Client, Finding, Outcome, Refused};
use super::super::verify::{self, Rules};
use super::super::x509::{Certificate, distinguished_name_of_der};
use super::session::{Answer, Ended, Failure, Hello, Session};
use super::{ClientResult, MESH_ALPN, PLAIN_ALPN, Probe, Request, Server, Settings, TUNNEL_ALPN, weigh};

/// An answer in HTTP is waited for so many times as long as an alert: its server has a look at the request first.
const ANSWER_WAITS: u32 = 2;

/// Checks one server.
pub(super) async fn probe(request: Request<'_>, settings: &Settings) -> Probe {
    let waits = settings.alert_wait * (1 + ANSWER_WAITS) * 3 + settings.patience;
    let check = Check { request, settings, deadline: Instant::now() + settings.timeout * 4 + waits };
    check.run().await
}

struct Check<'a> {
    request: Request<'a>,
    settings: &'a Settings,
    deadline: Instant,
}

/// What came of one client at first.
struct Tried {
    result: ClientResult,
    /// Not even the hello was answered.
    unanswered: bool,
}

/// What is waited for after a handshake.
#[derive(Clone, Copy)]
enum Listen {
    /// The alert that refuses, then an answer in HTTP.
    Once,
    /// Longer, and in silence.
    Patiently,
}

impl Check<'_> {
    async fn run(&self) -> Probe {
        let mut result = Probe::default();
        let (own_hello, mut first) = match self.first_contact().await {
            Ok(found) => found,
            Err(finding) => {
                result.findings.push(finding);
                return result;
            }
        };
        let hello = &own_hello;
        let mut tried: Vec<_> = Client::FORBIDDEN.into_iter().skip(1).map(|client| (client, None)).collect();
        tried.extend(self.request.names.iter().map(|name| (Client::Named, Some(name))));
        tried.extend(self.request.mesh_client.map(|_| (Client::Mesh, None)));
        if matches!(first.failure(), Some(Failure { ended: Ended::Protocol(_), .. })) {
            tried.clear();
        }
        let others = tried.iter().map(|(client, name)| self.try_client(*client, *name, hello, Listen::Once));
        // Its end is that of its connection, which a server that serves one at a time waits for.
        let of_first = async move {
            let outcome = self.outcome(Client::NoCertificate, &mut first, None, Listen::Once).await;
            let failed = first.failure().filter(|failure| matches!(failure.ended, Ended::Protocol(_)));
            (outcome, first.observed().chain, server_of(&first, hello), failed.map(ToString::to_string))
        };
        let ((outcome, chain, server, failed), mut clients) = join(of_first, join_all(others)).await;
        result.server = Some(server);
        self.judge_chain(&chain, &mut result);
        result.findings.extend(failed.map(|detail| Finding::HandshakeFailed { detail }));
        let first_result = ClientResult { client: Client::NoCertificate, server_name: None, outcome };
        clients.insert(0, Tried { result: first_result, unanswered: false });
        // A server that serves one connection at a time kept these waiting for the others.
        for tried in clients.iter_mut().filter(|tried| tried.unanswered) {
            let (client, name) = (tried.result.client, self.name_of(&tried.result));
            *tried = self.try_client(client, name, hello, Listen::Once).await;
        }
        let mut clients: Vec<_> = clients.into_iter().map(|tried| tried.result).collect();
        self.look_closer(&mut clients, hello).await;
        weigh::weigh(&mut clients, self.settings.patience);
        result.findings.extend(clients.iter().filter_map(weigh::finding));
        result.clients = clients;
        result
    }

    /// Connects as a mesh client without a certificate, and with less of a mesh client where that is refused.
    async fn first_contact(&self) -> Result<(Hello, Session), Finding> {
        let mesh = if self.request.tunnel {
            let alpn = TUNNEL_ALPN.map(<[u8]>::to_vec).to_vec();
            Hello { alpn, only_tls13: true, ..Hello::default() }
        } else {
            let alpn = MESH_ALPN.map(<[u8]>::to_vec).to_vec();
            Hello { alpn, server_name: self.request.server_name.cloned(), ..Hello::default() }
        };
        let mut hellos = vec![mesh.clone(), Hello { alpn: Vec::new(), ..mesh.clone() }, Hello::default()];
        hellos.dedup_by(|next, earlier| next.alpn == earlier.alpn && next.server_name == earlier.server_name);
        let mut first_failure = None;
        for hello in hellos {
            let mut session = self.connect(&hello).await.map_err(|detail| Finding::Unreachable { detail })?;
            match session.handshake(self.limit()).await {
                Ok(()) => return Ok((hello, session)),
                // It has shown its certificate, so what ended the handshake was the missing one of the client.
                Err(_) if session.observed().chain_seen => return Ok((hello, session)),
                Err(failure) => {
                    let retry = matches!(failure.ended, Ended::Alert(_) | Ended::Closed | Ended::Reset);
                    let first = first_failure.get_or_insert(failure);
                    if !retry {
                        return Err(finding_of(first));
                    }
                }
            }
        }
        Err(first_failure.as_ref().map_or_else(
            || Finding::Unreachable { detail: "no connection was tried".to_owned() },
            finding_of,
        ))
    }

    async fn try_client(
        &self,
        client: Client,
        name: Option<&DnsName<'static>>,
        mesh: &Hello,
        listen: Listen,
    ) -> Tried {
        let certificates = match client {
            Client::Mesh => self.request.mesh_client.cloned().into_iter().collect(),
            forbidden => self.request.forbidden.certificates(forbidden),
        };
        let hello = if matches!(client, Client::PlainTls | Client::Named) {
            let alpn = PLAIN_ALPN.map(<[u8]>::to_vec).to_vec();
            Hello { alpn, server_name: name.cloned(), ..Hello::default() }
        } else {
            Hello { certificates, ..mesh.clone() }
        };
        let tried = |outcome, unanswered| Tried {
            result: ClientResult { client, server_name: name.map(|name| name.as_ref().to_owned()), outcome },
            unanswered,
        };
        if Instant::now() >= self.deadline {
            let detail = "the time for this check is used up".to_owned();
            return tried(Outcome::Inconclusive { detail }, false);
        }
        let mut session = match self.connect(&hello).await {
            Ok(session) => session,
            Err(detail) => return tried(Outcome::Inconclusive { detail }, true),
        };
        let failed = session.handshake(self.limit()).await.err();
        let unanswered =
            failed.is_some_and(|failure| failure.ended == Ended::Silent && failure.received == 0);
        let outcome = self.outcome(client, &mut session, name.map(|name| name.as_ref()), listen).await;
        tried(outcome, unanswered)
    }

    /// The name behind a result.
    fn name_of(&self, result: &ClientResult) -> Option<&DnsName<'static>> {
        self.request.names.iter().find(|name| Some((*name).as_ref()) == result.server_name.as_deref())
    }

    async fn connect(&self, hello: &Hello) -> Result<Session, String> {
        let Settings { mark, announcer, .. } = self.settings;
        Session::connect(self.request.address, hello, *mark, announcer.as_ref(), self.limit()).await
    }

    fn limit(&self) -> Instant {
        (Instant::now() + self.settings.timeout).min(self.deadline)
    }

    /// What became of a client whose handshake has been driven to its end, as it looks from this connection alone.
    async fn outcome(
        &self,
        client: Client,
        session: &mut Session,
        name: Option<&str>,
        listen: Listen,
    ) -> Outcome {
        let observed = session.observed();
        if observed.withheld {
            let detail = "the server takes no signature that this client's keys can make".to_owned();
            return Outcome::Inconclusive { detail };
        }
        if let Some(failure) = session.failure() {
            return refusal(client, failure, observed.chain_seen);
        }
        if observed.asked.is_none() {
            return Outcome::Accepted(Accepted::NotAsked);
        }
        let wait = match listen {
            Listen::Once => self.settings.alert_wait,
            Listen::Patiently => self.settings.patience,
        };
        let accepted = match session.listen((Instant::now() + wait).min(self.deadline)).await {
            Ended::Alert(alert) => return by_alert(alert),
            Ended::Closed => return Outcome::Refused(Refused::Closed),
            Ended::Reset => return Outcome::Refused(Refused::Reset),
            Ended::NotTls(detail) | Ended::Protocol(detail) | Ended::Lost(detail) => {
                return Outcome::Inconclusive { detail };
            }
            // A server that speaks first has said what it thinks of the client.
            Ended::Data => return Outcome::Accepted(Accepted::Data),
            Ended::Ticket => Accepted::Ticket,
            Ended::Silent if session.server_is_done() => Accepted::Handshake,
            Ended::Silent => {
                Accepted::Silent { waited_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) }
            }
        };
        // The mesh client may be answered by an application, which is none of our business.
        if self.settings.http_probe && client != Client::Mesh && matches!(listen, Listen::Once) {
            let deadline = Instant::now() + self.settings.alert_wait * ANSWER_WAITS;
            match session.ask_http(name, deadline.min(self.deadline)).await {
                Answer::Refused(Refused::Alert { alert }) => return by_alert(alert),
                Answer::Refused(refused) => return Outcome::Refused(refused),
                Answer::Other => return Outcome::Accepted(Accepted::Data),
                Answer::None => {}
            }
        }
        Outcome::Accepted(accepted)
    }

    /// What one look does not tell gets another one, where nothing else has decided already.
    async fn look_closer(&self, clients: &mut [ClientResult], hello: &Hello) {
        let proven =
            |result: &ClientResult| result.client != Client::Mesh && weigh::is_proven(&result.outcome);
        if clients.iter().any(proven) {
            return;
        }
        let again = clients.iter_mut().map(async |result| {
            let silent = matches!(result.outcome, Outcome::Accepted(Accepted::Silent { .. }));
            if silent && result.client != Client::Mesh {
                let name = self.name_of(result);
                *result = self.try_client(result.client, name, hello, Listen::Patiently).await.result;
            }
        });
        join_all(again).await;
        // The mesh client lived on beside those that were closed; it must still do so behind them.
        let closed =
            |outcome: &Outcome| matches!(outcome, Outcome::Refused(Refused::Closed | Refused::Reset));
        let any = clients.iter().any(|result| result.client != Client::Mesh && closed(&result.outcome));
        let mesh = clients.iter_mut().find(|result| result.client == Client::Mesh);
        if let Some(mesh) = mesh.filter(|mesh| any && matches!(mesh.outcome, Outcome::Accepted(_))) {
            *mesh = self.try_client(Client::Mesh, None, hello, Listen::Once).await.result;
        }
    }

    fn judge_chain(&self, chain: &[CertificateDer<'_>], result: &mut Probe) {
        let rules = Rules {
            bundle: self.request.bundle,
            expected: self.request.expected,
            expiry: self.settings.expiry,
            now: Timestamp::now(),
        };
        result.findings.extend(verify::findings(chain, rules));
    }
}

/// Alerts that say nothing about the client's certificate.
const UNRELATED_ALERTS: [&str; 2] = ["internal_error", "user_canceled"];

fn by_alert(alert: String) -> Outcome {
    if UNRELATED_ALERTS.contains(&&*alert) {
        return Outcome::Inconclusive {
            detail: format!("the server ended the connection with alert {alert}"),
        };
    }
    Outcome::Refused(Refused::Alert { alert })
}

/// A handshake that ended before it was done is a refusal of the client when the server has shown its certificate:
/// negotiation has succeeded then, and what is left to dislike is the client. A client with another hello than the
/// first needs no certificate to be refused: a server of the mesh may serve the mesh's ALPN only.
fn refusal(client: Client, failure: &Failure, chain_seen: bool) -> Outcome {
    let told = chain_seen || matches!(client, Client::PlainTls | Client::Named);
    match &failure.ended {
        Ended::Alert(alert) if told => by_alert(alert.clone()),
        Ended::Closed if told => Outcome::Refused(Refused::Closed),
        Ended::Reset if told => Outcome::Refused(Refused::Reset),
        _ => Outcome::Inconclusive { detail: failure.to_string() },
    }
}

/// What a first contact that got to see no certificate says about the server: only an alert, an answer that is no TLS and
/// a broken protocol say something; all else may be a lost packet, a slow server, or a proxy whose application is down.
fn finding_of(failure: &Failure) -> Finding {
    let detail = failure.to_string();
    match &failure.ended {
        Ended::NotTls(_) => Finding::NotTls { detail },
        Ended::Alert(alert) if UNRELATED_ALERTS.contains(&&**alert) => Finding::Unreachable { detail },
        Ended::Alert(_) | Ended::Protocol(_) => Finding::HandshakeFailed { detail },
        Ended::Closed | Ended::Reset | Ended::Lost(_) | Ended::Silent | Ended::Data | Ended::Ticket => {
            Finding::Unreachable { detail }
        }
    }
}

fn server_of(session: &Session, hello: &Hello) -> Server {
    let observed = session.observed();
    let negotiated = session.negotiated();
    let readable = observed.chain.iter().take(verify::MAX_CHAIN);
    Server {
        chain: readable.filter_map(|der| Certificate::read(der).ok()).collect(),
        version: negotiated.version,
        cipher_suite: negotiated.cipher_suite,
        group: negotiated.group,
        alpn: negotiated.alpn,
        asks_for: observed
            .asked
            .map(|names| names.iter().take(32).map(|name| distinguished_name_of_der(name)).collect()),
        mesh_hello: !hello.alpn.is_empty(),
    }
}
