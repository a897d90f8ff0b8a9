//! Under which version a cluster serves `PeerAuthentication`, if at all.

use kube::Client;
use tokio::time::timeout;

use super::failure::Failure;
use super::kind::Kind;
use super::pulse::PATIENCE;

/// The best first.
const VERSIONS: [&str; 2] = ["security.istio.io/v1", "security.istio.io/v1beta1"];

/// The version to watch. Fails with [`Failure::NotServed`] where the definition is missing, and where it is being
/// removed: then the API still lists, but all objects are about to be swept away, and an empty list says nothing about
/// what anybody wants.
pub(super) async fn version(client: &Client) -> Result<&'static str, Failure> {
    for version in VERSIONS {
        let answer = timeout(PATIENCE, client.list_api_group_resources(version));
        match answer.await.map_err(|_| Failure::silent())? {
            Ok(list) => {
                let resource =
                    list.resources.iter().find(|resource| resource.name == Kind::Policies.plural());
                match resource {
                    // A definition that is being removed allows to read and to delete.
                    Some(resource) if resource.verbs.iter().any(|verb| verb == "create") => {
                        return Ok(version);
                    }
                    Some(_) => return Err(Failure::NotServed(Kind::Policies)),
                    None => {}
                }
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(Failure::of(Kind::Policies, &error)),
        }
    }
    Err(Failure::NotServed(Kind::Policies))
}
