//! What clients got, compared with each other. Pure.
//!
//! A connection that is closed or reset without an alert may be a refusal, or a proxy whose application is down, which
//! does that to everybody. What tells them apart is the mesh client: where its connection lives on, the others were
//! turned away. Without one, and where its connection is closed too, nothing is said.
//!
//! Silence after a TLS 1.3 handshake may be acceptance, or a server that has not looked yet. It counts when it
//! lasts, and not where the mesh client was answered: then this one is treated differently.

use std::time::Duration;

use super::super::finding::{Accepted, Client, Finding, Outcome, Refused};
use super::ClientResult;

/// The client was let in beyond doubt.
pub(super) fn is_proven(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Accepted(accepted) if !matches!(accepted, Accepted::Silent { .. }))
}

/// Turns what is no evidence into [`Outcome::Inconclusive`].
pub(super) fn weigh(clients: &mut [ClientResult], patience: Duration) {
    let mesh =
        clients.iter().find(|result| result.client == Client::Mesh).map(|result| result.outcome.clone());
    let lives = matches!(mesh, Some(Outcome::Accepted(_)));
    let answered = mesh.as_ref().is_some_and(is_proven);
    for result in clients {
        let doubt = match &result.outcome {
            Outcome::Refused(how @ (Refused::Closed | Refused::Reset)) => {
                let ended = if *how == Refused::Closed { "closed" } else { "reset" };
                let why = match mesh {
                    _ if result.client == Client::Mesh => "perhaps the application behind it is down",
                    Some(_) if lives => continue,
                    Some(_) => "so was that of the mesh client, or it could not be tried",
                    None => {
                        "a mesh client could tell whether that was for its certificate (--client-certificate)"
                    }
                };
                format!("the connection was {ended} without an alert; {why}")
            }
            Outcome::Accepted(Accepted::Silent { waited_ms }) if result.client != Client::Mesh => {
                let lasted = Duration::from_millis(*waited_ms) >= patience;
                if lasted && !answered {
                    continue;
                }
                let why = if answered { ", while the mesh client was answered" } else { "" };
                format!("handshake done, and no alert within {waited_ms} ms{why}")
            }
            _ => continue,
        };
        result.outcome = Outcome::Inconclusive { detail: doubt };
    }
}

/// What speaks against the server in what this client got.
pub(super) fn finding(result: &ClientResult) -> Option<Finding> {
    let (client, server_name) = (result.client, result.server_name.clone());
    match (client, &result.outcome) {
        (Client::Mesh, Outcome::Refused(how)) => Some(Finding::MeshClientRefused { how: how.clone() }),
        (Client::Mesh, Outcome::Accepted(_)) | (_, Outcome::Refused(_)) => None,
        (_, Outcome::Accepted(why)) => {
            Some(Finding::ForbiddenAccepted { client, server_name, why: why.clone() })
        }
        (_, Outcome::Inconclusive { detail }) => {
            Some(Finding::Inconclusive { client, server_name, detail: detail.clone() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    /// What the forbidden client and the mesh client got, weighed.
    fn weighed(forbidden: Outcome, mesh: Option<Outcome>) -> (Outcome, Option<Outcome>) {
        let result = |client, outcome| ClientResult { client, server_name: None, outcome };
        let mut clients = vec![result(Client::NoCertificate, forbidden)];
        clients.extend(mesh.map(|outcome| result(Client::Mesh, outcome)));
        weigh(&mut clients, PATIENCE);
        (clients[0].outcome.clone(), clients.get(1).map(|result| result.outcome.clone()))
    }

    fn silent(waited_ms: u64) -> Outcome {
        Outcome::Accepted(Accepted::Silent { waited_ms })
    }

    fn is_inconclusive(outcome: &Outcome) -> bool {
        matches!(outcome, Outcome::Inconclusive { .. })
    }

    #[test]
    fn a_close_counts_only_where_the_mesh_client_lives_on() {
        let unknown = Outcome::Inconclusive { detail: String::new() };
        let alert = Outcome::Refused(Refused::Alert { alert: "certificate_required".to_owned() });
        for how in [Refused::Closed, Refused::Reset] {
            let closed = Outcome::Refused(how);
            for lives in [silent(750), Outcome::Accepted(Accepted::Ticket), Outcome::Accepted(Accepted::Data)]
            {
                assert_eq!(weighed(closed.clone(), Some(lives)).0, closed);
            }
            for mesh in [None, Some(closed.clone()), Some(alert.clone()), Some(unknown.clone())] {
                assert!(is_inconclusive(&weighed(closed.clone(), mesh.clone()).0), "{mesh:?}");
            }
            // Nor does it say that the mesh client is refused; an alert does.
            assert!(weighed(alert.clone(), Some(closed)).1.as_ref().is_some_and(is_inconclusive));
        }
        assert_eq!(weighed(alert.clone(), Some(alert.clone())), (alert.clone(), Some(alert)));
    }

    #[test]
    fn silence_counts_when_it_lasts_and_nobody_is_answered() {
        assert!(is_inconclusive(&weighed(silent(750), None).0));
        assert!(is_inconclusive(&weighed(silent(750), Some(silent(750))).0));
        assert_eq!(weighed(silent(5000), None).0, silent(5000));
        assert_eq!(weighed(silent(5000), Some(silent(750))), (silent(5000), Some(silent(750))));
        assert!(is_inconclusive(&weighed(silent(5000), Some(Outcome::Accepted(Accepted::Ticket))).0));
        for proof in [Accepted::NotAsked, Accepted::Ticket, Accepted::Data, Accepted::Handshake] {
            let accepted = Outcome::Accepted(proof);
            assert_eq!(weighed(accepted.clone(), None).0, accepted);
        }
    }
}
