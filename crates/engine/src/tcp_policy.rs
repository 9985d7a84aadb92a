//! What becomes of connections of TCP, by the addresses of their peers.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// What becomes of a connection of TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TcpPolicy {
    /// A tree that has one is not checkpointed.
    #[default]
    Refuse,
    /// It is carried (`--tcp-established`).
    Keep,
    /// The program sees its end, and so does the peer when the tree is ended (`--tcp-close`).
    Close,
    /// The same, but the peer is told that it has been broken off (RST).
    Reset,
}

impl TcpPolicy {
    /// Whether a connection that is in an image already is put together again: unless another thing is said.
    #[must_use]
    pub fn keeps_record(self) -> bool {
        matches!(self, TcpPolicy::Refuse | TcpPolicy::Keep)
    }
}

/// A policy for the connections with some peers: `POLICY[:ADDRESS[/BITS][:PORT]]`.
/// An address of IPv6 stands in brackets: `keep:[fd00::/8]:443`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpRule {
    policy: TcpPolicy,
    network: Option<(IpAddr, u32)>,
    port: Option<u16>,
}

/// Policies for all connections.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TcpPolicies {
    rules: Vec<TcpRule>,
    otherwise: TcpPolicy,
}

impl From<TcpPolicy> for TcpPolicies {
    fn from(otherwise: TcpPolicy) -> Self {
        TcpPolicies { rules: Vec::new(), otherwise }
    }
}

impl TcpPolicies {
    /// With rules that come before; of those that match, the first counts.
    #[must_use]
    pub fn with_rules(self, rules: Vec<TcpRule>) -> Self {
        TcpPolicies { rules, ..self }
    }

    /// What becomes of the connection with a peer.
    #[must_use]
    pub fn of(&self, peer: SocketAddr) -> TcpPolicy {
        self.rules.iter().find(|rule| rule.matches(peer)).map_or(self.otherwise, |rule| rule.policy)
    }

    /// Whether any connection may be carried.
    #[must_use]
    pub fn may_keep(&self) -> bool {
        self.otherwise == TcpPolicy::Keep || self.rules.iter().any(|rule| rule.policy == TcpPolicy::Keep)
    }
}

impl TcpRule {
    fn matches(&self, peer: SocketAddr) -> bool {
        let (ip, port) = (peer.ip().to_canonical(), peer.port());
        let in_network = |(network, bits): (IpAddr, u32)| match (network, ip) {
            (IpAddr::V4(network), IpAddr::V4(ip)) => {
                same_bits(network.to_bits().into(), ip.to_bits().into(), 32 - bits)
            }
            (IpAddr::V6(network), IpAddr::V6(ip)) => same_bits(network.to_bits(), ip.to_bits(), 128 - bits),
            _ => false,
        };
        self.network.is_none_or(in_network) && self.port.is_none_or(|wanted| wanted == port)
    }
}

/// Whether two addresses are the same but for the last bits.
fn same_bits(one: u128, other: u128, but_for: u32) -> bool {
    (one ^ other).checked_shr(but_for).unwrap_or(0) == 0
}

impl FromStr for TcpRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (policy, rest) = text.split_once(':').map_or((text, None), |(policy, rest)| (policy, Some(rest)));
        let policy = match policy {
            "keep" => TcpPolicy::Keep,
            "close" => TcpPolicy::Close,
            "reset" => TcpPolicy::Reset,
            other => return Err(format!("'{other}' is none of keep, close, reset")),
        };
        let Some(rest) = rest else { return Ok(TcpRule { policy, network: None, port: None }) };
        let (network, port) = match rest.strip_prefix('[') {
            None => rest.split_once(':').map_or((rest, None), |(network, port)| (network, Some(port))),
            Some(rest) => {
                let (network, rest) = rest.split_once(']').ok_or("a bracket is not closed")?;
                let port = rest.strip_prefix(':');
                if port.is_none() && !rest.is_empty() {
                    return Err(format!("'{rest}' is no :PORT"));
                }
                (network, port)
            }
        };
        let port = port.map(|port| port.parse().map_err(|_| format!("'{port}' is no port"))).transpose()?;
        Ok(TcpRule { policy, network: Some(network_of(network)?), port })
    }
}

/// An address, or the beginning of addresses and the count of its bits.
fn network_of(text: &str) -> Result<(IpAddr, u32), String> {
    let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    let address: IpAddr = address.parse().map_err(|_| format!("'{address}' is no address (of IPv6: in brackets)"))?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = match bits {
        None => most,
        Some(bits) => {
            bits.parse().ok().filter(|bits| *bits <= most).ok_or_else(|| format!("'{bits}' is no count of bits"))?
        }
    };
    Ok((address, bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policies(rules: &[&str]) -> TcpPolicies {
        TcpPolicies::default().with_rules(rules.iter().map(|rule| rule.parse().unwrap()).collect())
    }

    #[test]
    fn the_first_rule_that_matches_counts() {
        let all = policies(&["reset:10.0.0.0/8:5432", "close:10.1.0.0/16", "keep:[fd00::/8]:443", "close:[::1]"]);
        for (peer, policy) in [
            ("10.1.2.3:5432", TcpPolicy::Reset),
            ("[::ffff:10.1.2.3]:5432", TcpPolicy::Reset),
            ("10.1.2.3:80", TcpPolicy::Close),
            ("10.2.2.3:80", TcpPolicy::Refuse),
            ("[fd12::5]:443", TcpPolicy::Keep),
            ("[fd12::5]:444", TcpPolicy::Refuse),
            ("[::1]:9", TcpPolicy::Close),
            ("[::2]:9", TcpPolicy::Refuse),
        ] {
            assert_eq!(all.of(peer.parse().unwrap()), policy, "{peer}");
        }
        assert!(all.may_keep() && !policies(&["close"]).may_keep());
        assert_eq!(policies(&["keep"]).of("[2001:db8::1]:1".parse().unwrap()), TcpPolicy::Keep);
        assert_eq!(policies(&["close:0.0.0.0/0"]).of("1.2.3.4:1".parse().unwrap()), TcpPolicy::Close);
    }

    #[test]
    fn what_is_no_rule_is_said() {
        for text in
            ["drop", "keep:", "keep:host:80", "keep:10.0.0.0/33", "close:10.0.0.1:http", "keep:[::1", "keep:[::1]80"]
        {
            assert!(text.parse::<TcpRule>().is_err(), "{text}");
        }
    }
}
