//! Throw-away certificates.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose,
};

/// X.520's organizationName. rcgen has one value per type of name; written as a custom type it
/// is another type to rcgen and the same to the API server.
const ORGANIZATION: [u64; 4] = [2, 5, 4, 10];

/// A certificate authority that servers and clients are signed by.
pub struct Authority {
    folder: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
    issued: AtomicUsize,
}

/// Files of a certificate and its key.
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    /// Writes its own certificate and key to `ca.crt` and `ca.key`.
    pub fn new(folder: &Path) -> Self {
        let mut params = params("control-plane-ca", &[], &[]);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        write(&folder.join("ca.key"), &key.serialize_pem());
        let issuer = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        write(&folder.join("ca.crt"), &issuer.pem());
        Self { folder: folder.to_owned(), issuer, issued: AtomicUsize::new(0) }
    }

    /// What clients trust.
    pub fn certificate(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    pub fn key(&self) -> PathBuf {
        self.folder.join("ca.key")
    }

    pub fn der(&self) -> Vec<u8> {
        self.issuer.der().to_vec()
    }

    /// For a server with these names and addresses.
    pub fn server(&self, names: &[&str]) -> Identity {
        let mut params = params("server", &[], names);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params)
    }

    /// For a user: Kubernetes reads the name from CN and groups from O.
    pub fn client(&self, user: &str, groups: &[&str]) -> Identity {
        let mut params = params(user, groups, &[]);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(params)
    }

    fn issue(&self, mut params: CertificateParams) -> Identity {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let name = format!("issued-{}", self.issued.fetch_add(1, Ordering::Relaxed));
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let identity = Identity {
            certificate: self.folder.join(format!("{name}.crt")),
            key: self.folder.join(format!("{name}.key")),
        };
        write(&identity.certificate, &certificate.pem());
        write(&identity.key, &key.serialize_pem());
        identity
    }
}

/// A key pair that signs tokens of service accounts, as `NAME.key` and `NAME.pub`.
pub fn signing_key(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let key = KeyPair::generate().expect("a key");
    let (private, public) = (folder.join(format!("{name}.key")), folder.join(format!("{name}.pub")));
    write(&private, &key.serialize_pem());
    write(&public, &key.public_key_pem());
    (private, public)
}

fn params(common_name: &str, organizations: &[&str], names: &[&str]) -> CertificateParams {
    let names: Vec<_> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).expect("names that a certificate can have");
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, common_name);
    let kinds = [DnType::OrganizationName, DnType::CustomDnType(ORGANIZATION.to_vec())];
    assert!(organizations.len() <= kinds.len(), "rcgen can write two organizations, not {organizations:?}");
    for (kind, organization) in kinds.into_iter().zip(organizations) {
        subject.push(kind, *organization);
    }
    params.distinguished_name = subject;
    params
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
