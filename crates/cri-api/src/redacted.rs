//! `Debug` for the one message that carries secrets.

use std::fmt;

use crate::v1::AuthConfig;

/// Stands for a secret: shows whether there is one, but neither its content nor its length.
struct Secret<'a>(&'a str);

impl fmt::Debug for Secret<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<none>" } else { "<redacted>" })
    }
}

impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without `..`, so that a field added to the proto has to be considered here.
        let Self { username, password, auth, server_address, identity_token, registry_token } = self;
        f.debug_struct("AuthConfig")
            .field("username", username)
            .field("password", &Secret(password))
            .field("auth", &Secret(auth))
            .field("server_address", server_address)
            .field("identity_token", &Secret(identity_token))
            .field("registry_token", &Secret(registry_token))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::PullImageRequest;

    #[test]
    fn secrets_are_hidden_at_any_depth() {
        let auth = AuthConfig {
            username: "alice".into(),
            password: "hunter2".into(),
            auth: "YWxpY2U6aHVudGVyMg==".into(),
            server_address: "registry.example".into(),
            identity_token: "id-token".into(),
            registry_token: "reg-token".into(),
        };
        let secrets = ["hunter2", "YWxpY2U6aHVudGVyMg==", "id-token", "reg-token"];
        let request = PullImageRequest { auth: Some(auth.clone()), ..Default::default() };
        for text in [format!("{auth:?}"), format!("{auth:#?}"), format!("{request:?}")] {
            for secret in secrets {
                assert!(!text.contains(secret), "{secret} in {text}");
            }
            assert!(text.contains("alice") && text.contains("registry.example"), "{text}");
        }
    }

    #[test]
    fn absent_secrets_are_told_from_hidden_ones() {
        let auth = AuthConfig { password: "x".into(), ..Default::default() };
        assert_eq!(
            format!("{auth:?}"),
            "AuthConfig { username: \"\", password: <redacted>, auth: <none>, server_address: \"\", \
             identity_token: <none>, registry_token: <none> }"
        );
    }
}
