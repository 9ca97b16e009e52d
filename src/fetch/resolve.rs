//! Names to addresses that may be dialled.
//!
//! The client dials only what comes out here, so that a name cannot show one address to a check and another to
//! the connection.

use std::error::Error as StdError;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::guard::Guard;

type BoxError = Box<dyn StdError + Send + Sync>;

/// Every address of a name was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no address of the name may be reached")]
pub(super) struct Refused;

/// Asks the operating system.
#[derive(Debug, Clone, Copy)]
pub(super) struct SystemNames;

impl Resolve for SystemNames {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            // Port 0 is replaced by the URL's.
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Resolves by `names`, then drops the addresses that the [`Guard`] refuses. Cheap to clone.
#[derive(Clone)]
pub(super) struct GuardedNames {
    pub guard: Guard,
    pub names: Arc<dyn Resolve>,
    /// The operator's proxy, which stands in a private network as a rule.
    pub proxy_host: Option<String>,
}

impl GuardedNames {
    /// Whether a proxy may be asked for `name`: it resolves the name again and takes whichever address it likes, so all of
    /// them must be ones that may be dialled.
    ///
    /// # Errors
    /// [`Refused`], or why the name has no address.
    pub async fn judge(&self, name: Name) -> Result<(), BoxError> {
        let mut found = self.names.resolve(name).await?.peekable();
        if found.peek().is_none() {
            return Err(io::Error::from(io::ErrorKind::NotFound).into());
        }
        if found.all(|address| self.guard.permits(address.ip())) { Ok(()) } else { Err(Refused.into()) }
    }

    async fn permitted(&self, name: Name) -> Result<Vec<SocketAddr>, BoxError> {
        let found: Vec<SocketAddr> = self.names.resolve(name).await?.collect();
        let mut permitted = found.clone();
        permitted.retain(|address| self.guard.permits(address.ip()));
        if permitted.is_empty() && !found.is_empty() { Err(Refused.into()) } else { Ok(permitted) }
    }
}

impl Resolve for GuardedNames {
    fn resolve(&self, name: Name) -> Resolving {
        // With a proxy `hop` has judged the picture's host before it gets here, this name included.
        if self.proxy_host.as_deref() == Some(name.as_str()) {
            return self.names.resolve(name);
        }
        let names = self.clone();
        Box::pin(async move { Ok(Box::new(names.permitted(name).await?.into_iter()) as Addrs) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(allow: &[&str], proxy_host: Option<&str>) -> GuardedNames {
        let allow: Vec<_> = allow.iter().map(|network| network.parse().unwrap()).collect();
        let guard = Guard::new(&allow, &[]);
        GuardedNames { guard, names: Arc::new(SystemNames), proxy_host: proxy_host.map(Into::into) }
    }

    fn localhost() -> Name {
        "localhost".parse().unwrap()
    }

    #[tokio::test]
    async fn only_what_may_be_dialled_is_left() {
        let refused = names(&[], None).resolve(localhost()).await.err().unwrap();
        assert!(refused.is::<Refused>());
        let addresses: Vec<_> = names(&["127.0.0.0/8"], None).resolve(localhost()).await.unwrap().collect();
        assert!(!addresses.is_empty() && addresses.iter().all(|address| address.is_ipv4()), "{addresses:?}");
    }

    #[tokio::test]
    async fn the_proxy_is_dialled_wherever_it_is() {
        let names = names(&[], Some("localhost"));
        assert!(names.resolve(localhost()).await.unwrap().next().is_some());
        assert!(names.judge(localhost()).await.unwrap_err().is::<Refused>());
    }
}
