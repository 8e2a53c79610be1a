//! The key of an instance (shared by `instance` and `proxy`, which never import each other): what the proxy shows to sq, and what proves that *this* child answers on a port.

use aws_lc_rs::hmac;

use crate::{desired::TenantId, digest::hex, secret::Secret};

/// Derives the `--key` of one start of one tenant's instance: 64 lower-case hex digits (sq forbids `:` and the empty key).
///
/// HMAC-SHA256 over (id, epoch) under a secret that only the agent and the proxy hold. It is unpredictable and differs at
/// every start, as a random one would, but neither the route table nor instances.db has to carry it, and an agent
/// that was killed can still prove which instances are its own.
pub fn derive(instance_secret: &Secret, id: &TenantId, epoch: u64) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, instance_secret.expose());
    let mut context = hmac::Context::with_key(&key);
    context.update(b"sq-agent instance key v1\0");
    context.update(id.as_str().as_bytes());
    context.update(b"\0");
    context.update(&epoch.to_le_bytes());
    hex(context.sign().as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_start_of_each_tenant_has_a_key_of_its_own() {
        let secret = Secret::new([7; 32]);
        let (a, b) = (TenantId::parse("a").unwrap(), TenantId::parse("b").unwrap());
        let keys = [derive(&secret, &a, 1), derive(&secret, &a, 2), derive(&secret, &b, 1), derive(&Secret::new([8; 32]), &a, 1)];
        for (i, x) in keys.iter().enumerate() {
            assert_eq!(x.len(), 64);
            assert!(!x.contains(':'));
            assert!(keys[i + 1..].iter().all(|y| x != y));
        }
    }
}
