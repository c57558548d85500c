//! From a socket to a client that is known.
//!
//! Arrives: the first frame of a connection. Leaves: a session and CONNACK, or a refusal that
//! says why in the client's own protocol. Always holds: nothing else is done for a client
//! before its user name and password have been found right.

use super::clients::{Identifiers, NotServed, Owner};
use super::connection::{Connection, Peer};
use super::packet::{self, Frame, Hello, Version, Violation, malformed, reason};
use super::retained::Publication;
use super::session::{ALIASES_MAX, Session, Will};
use super::{Shared, packet::protocol_error};
use crate::journal::{Inbound, Parcel};
use bytes::Bytes;
use daemon::auth::{Denied, User};
use daemon::seats::address_name;
use daemon::sparse::Sparse;
use rumqttd::protocol::{
    ConnAck, ConnAckProperties, Connect, ConnectProperties, ConnectReturnCode, LastWill, LastWillProperties, Login,
    Packet,
};
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The longest client identifier: others see it, and it is kept.
const CLIENT_ID_BYTES_MAX: usize = 1_024;

/// CONNACK's own codes for a refusal, in both protocols (3.1.1: table 3.1).
struct Refusal {
    v5: u8,
    v4: u8,
    what: &'static str,
}

const VERSION: Refusal = Refusal { v5: reason::UNSUPPORTED_VERSION, v4: 1, what: "protocol level is not 3, 4 or 5" };
const CLIENT_ID: Refusal = Refusal { v5: reason::CLIENT_ID_INVALID, v4: 2, what: "client identifier" };
const TAKEN: Refusal =
    Refusal { v5: reason::CLIENT_ID_INVALID, v4: 2, what: "another user's client has this identifier" };
const BUSY: Refusal = Refusal { v5: reason::QUOTA, v4: 3, what: "mqtt.max_connections reached" };
const MEMORY: Refusal = Refusal { v5: reason::QUOTA, v4: 3, what: "mqtt.session_memory reached" };
const LOGIN: Refusal = Refusal { v5: reason::BAD_LOGIN, v4: 4, what: "user name or password" };
const LATER: Refusal = Refusal { v5: reason::BUSY, v4: 3, what: "too many logins, or wrong ones before" };
const ANONYMOUS: Refusal = Refusal { v5: reason::NOT_AUTHORIZED, v4: 5, what: "no user name" };
const METHOD: Refusal = Refusal { v5: reason::BAD_METHOD, v4: 5, what: "authentication method" };

/// Why a client does not come in, and whether it has been told.
enum Refused {
    /// By CONNACK.
    Told(Violation),
    /// Not yet.
    Untold(Violation),
}

impl From<Violation> for Refused {
    fn from(violation: Violation) -> Self {
        Refused::Untold(violation)
    }
}

/// Answers CONNECT. Whoever is refused is told why where the protocol has a code for it, logged and counted.
pub(super) async fn greet(
    frame: &Frame<'_>,
    shared: &Arc<Shared>,
    connection: &Arc<Connection>,
    desk: usize,
    from: IpAddr,
    parcel: &mut Parcel,
) -> Result<Session, Violation> {
    static LOG: Sparse = Sparse::new();
    let violation = match enter(frame, shared, connection, desk, from, parcel).await {
        Ok(session) => return Ok(session),
        Err(Refused::Told(violation)) => violation,
        Err(Refused::Untold(violation)) => {
            if packet::connect_seems(frame) == Version::V5 {
                connection.send(&[0x20, 3, 0, violation.code, 0]);
            }
            violation
        }
    };
    shared.admission.metrics.refused_connect(reason::name(violation.code));
    if let Some(unsaid) = LOG.may_say() {
        let client: String = packet::connect_client(frame).unwrap_or_default().chars().take(64).collect();
        tracing::warn!(%from, client = client.escape_default().to_string(), unsaid, "a client was refused: {violation}");
    }
    Err(violation)
}

async fn enter(
    frame: &Frame<'_>,
    shared: &Arc<Shared>,
    connection: &Arc<Connection>,
    desk: usize,
    from: IpAddr,
    parcel: &mut Parcel,
) -> Result<Session, Refused> {
    let Some(Hello { version, is_bridge }) = packet::connect_version(frame)? else {
        return Err(refuse(connection, Version::V4, &VERSION));
    };
    let Packet::Connect(connect, properties, will, will_properties, login) = packet::decode_connect(version, frame)?
    else {
        return Err(malformed("CONNECT that is none").into());
    };
    if shared.open.load(Ordering::Relaxed) > shared.limits.connections {
        return Err(refuse(connection, version, &BUSY));
    }
    if properties.as_ref().is_some_and(|p| p.authentication_method.is_some()) {
        return Err(refuse(connection, version, &METHOD));
    }
    if connect.client_id.contains('\0')
        || connect.client_id.len() > CLIENT_ID_BYTES_MAX
        || (connect.client_id.is_empty() && version == Version::V4 && !connect.clean_session)
    {
        return Err(refuse(connection, version, &CLIENT_ID));
    }
    // Passwords are checked a few at a time: waiting for that is not the client's silence.
    connection.paused.store(true, Ordering::Relaxed);
    let user = match check_login(shared, login, from).await {
        Ok(user) => user,
        Err(refusal) => return Err(refuse(connection, version, refusal)),
    };
    let origin = user.as_ref().map_or_else(|| address_name(from), |(name, _)| format!("user {name}"));
    let will = will.map(|will| last_will(will, will_properties.as_ref(), connection.id)).transpose()?;
    let peer = peer(version, &connect, properties.as_ref(), shared)?;
    let client = Arc::clone(&peer.client);
    connection.introduce(peer);
    let owner = user.map(|(name, stored)| Owner { name, stored: Some(stored) });
    let (seated, inbound) = match shared.clients.enter(&client, owner.clone(), connection).await {
        Ok(entered) => entered,
        Err(NotServed::Taken) => return Err(refuse(connection, version, &TAKEN)),
        Err(NotServed::Closed) => {
            let what = "closed before it was its turn";
            return Err(Refused::Told(Violation { code: reason::TAKEN_OVER, what }));
        }
    };
    // The users may have been read again while the password was checked.
    if owner.is_some_and(|owner| shared.auth.stored(&owner.name) != owner.stored) {
        shared.clients.leave(&client, connection, Some((seated, inbound)));
        return Err(refuse(connection, version, &LOGIN));
    }
    let grace = u32::from(connect.keep_alive) * 3;
    connection.patience_s.store(grace.div_ceil(2), Ordering::Relaxed);
    connection.paused.store(false, Ordering::Relaxed);
    let expiry_s = properties.as_ref().and_then(|p| p.session_expiry_interval).unwrap_or(0);
    let persistent = if version == Version::V4 { !connect.clean_session } else { expiry_s > 0 };
    let inbound = kept_identifiers(&connect, persistent, &client, inbound, parcel);
    let assigned = connect.client_id.is_empty().then(|| client.to_string());
    let mut session = Session {
        shared: Arc::clone(shared),
        desk,
        connection: Arc::clone(connection),
        version,
        is_bridge,
        client,
        origin: origin.into(),
        seated: Some(seated),
        persistent,
        will,
        filters: HashSet::new(),
        aliases: HashMap::new(),
        inherited: inbound.keys().copied().collect(),
        inbound,
        filter_bytes: 0,
        charge: shared.session_memory.charge(),
        steps: SmallVec::new(),
    };
    if session.weigh().is_err() {
        session.will = None;
        leave(&mut session);
        return Err(refuse(&session.connection, version, &MEMORY));
    }
    accept(&session.connection, version, shared, assigned, expiry_s);
    Ok(session)
}

/// What a client that is back has of its earlier connection. The store forgets it if the
/// client starts anew, and if there is to be nothing left when this connection ends.
fn kept_identifiers(
    connect: &Connect,
    persistent: bool,
    client: &Arc<str>,
    inbound: Identifiers,
    parcel: &mut Parcel,
) -> Identifiers {
    if !inbound.is_empty() && (connect.clean_session || !persistent) {
        parcel.inbound.push(Inbound::Forgotten { client: Arc::clone(client) });
    }
    if connect.clean_session { Identifiers::new() } else { inbound }
}

/// Gives up the right to serve the client; returns one to be forgotten for want of room.
pub(super) fn leave(session: &mut Session) -> Option<Arc<str>> {
    let inbound = if session.persistent { std::mem::take(&mut session.inbound) } else { Identifiers::new() };
    let seated = session.seated.take()?;
    session.shared.clients.leave(&session.client, &session.connection, Some((seated, inbound)))
}

/// The user that a login shows, if it has to show any.
async fn check_login(
    shared: &Shared,
    login: Option<Login>,
    from: IpAddr,
) -> Result<Option<(Arc<str>, User)>, &'static Refusal> {
    match login {
        // Until somebody has been named, whoever may come here may come in (beyond loopback only if the
        // configuration says so), and a name is no reason to keep somebody out.
        _ if !shared.auth.asks() => Ok(None),
        None if shared.anonymous => Ok(None),
        None => Err(&ANONYMOUS),
        Some(login) => {
            let client = address_name(from);
            match shared.auth.password(&login.username, login.password.as_bytes(), &client).await {
                Ok(user) => Ok(Some((login.username.into(), user))),
                Err(Denied::Wrong) => Err(&LOGIN),
                Err(Denied::Later) => Err(&LATER),
            }
        }
    }
}

fn peer(
    version: Version,
    connect: &Connect,
    properties: Option<&ConnectProperties>,
    shared: &Shared,
) -> Result<Peer, Violation> {
    let asked = properties.and_then(|p| p.receive_maximum);
    let packet_max = properties.and_then(|p| p.max_packet_size);
    if asked == Some(0) || packet_max == Some(0) {
        return Err(protocol_error("receive maximum or maximum packet size 0"));
    }
    let inflight_max = shared.limits.inflight.min(asked.map_or(usize::MAX, usize::from)).min(60_000);
    let client = if connect.client_id.is_empty() { assigned_id() } else { connect.client_id.as_str().into() };
    Ok(Peer { version, client, inflight_max, packet_max: packet_max.map_or(usize::MAX, |n| n as usize) })
}

fn assigned_id() -> Arc<str> {
    let mut bytes = [0_u8; 8];
    let _ = getrandom::fill(&mut bytes);
    format!("auto-{:016x}", u64::from_le_bytes(bytes)).into()
}

fn last_will(will: LastWill, properties: Option<&LastWillProperties>, from: u64) -> Result<Will, Violation> {
    let topic = std::str::from_utf8(&will.topic).map_err(|_| malformed("will topic is not UTF-8"))?;
    if !packet::topic_is_valid(topic) {
        return Err(Violation { code: reason::TOPIC_INVALID, what: "will topic empty or with wildcards" });
    }
    let publication = Publication {
        topic: topic.into(),
        properties: properties.map(will_properties).unwrap_or_default(),
        payload: will.message,
        qos: will.qos as u8,
        retain: will.retain,
        expires_us: None,
        from,
    };
    Ok(Will { publication, expiry_s: properties.and_then(|p| p.message_expiry_interval) })
}

/// The will's properties as a PUBLISH carries them (section 3.1.3.2); delay and expiry are
/// not passed on as they came.
fn will_properties(will: &LastWillProperties) -> Bytes {
    let mut out = Vec::new();
    let text = |out: &mut Vec<u8>, id: u8, bytes: &[u8]| {
        out.push(id);
        out.extend((bytes.len() as u16).to_be_bytes());
        out.extend(bytes);
    };
    if let Some(format) = will.payload_format_indicator {
        out.extend([0x01, format]);
    }
    if let Some(content_type) = &will.content_type {
        text(&mut out, 0x03, content_type.as_bytes());
    }
    if let Some(topic) = &will.response_topic {
        text(&mut out, 0x08, topic.as_bytes());
    }
    if let Some(data) = &will.correlation_data {
        text(&mut out, 0x09, data);
    }
    for (key, value) in &will.user_properties {
        text(&mut out, 0x26, key.as_bytes());
        out.extend((value.len() as u16).to_be_bytes());
        out.extend(value.as_bytes());
    }
    out.into()
}

fn accept(connection: &Connection, version: Version, shared: &Shared, assigned: Option<String>, expiry_s: u32) {
    let answer = ConnAck { session_present: false, code: ConnectReturnCode::Success };
    let properties = (version == Version::V5).then(|| ConnAckProperties {
        assigned_client_identifier: assigned,
        // Subscriptions end with the connection, and the client is told so.
        session_expiry_interval: (expiry_s > 0).then_some(0),
        receive_max: u16::try_from(shared.limits.receive_maximum).ok(),
        max_packet_size: u32::try_from(shared.limits.packet_bytes).ok(),
        topic_alias_max: Some(ALIASES_MAX),
        shared_subscription_available: Some(0),
        ..ConnAckProperties::default()
    });
    connection.send(&packet::encode(version, Packet::ConnAck(answer, properties)));
}

/// Sends CONNACK with a refusal; the connection then ends without DISCONNECT.
fn refuse(connection: &Connection, version: Version, refusal: &Refusal) -> Refused {
    match version {
        Version::V4 => connection.send(&[0x20, 2, 0, refusal.v4]),
        Version::V5 => connection.send(&[0x20, 3, 0, refusal.v5, 0]),
    }
    Refused::Told(Violation { code: refusal.v5, what: refusal.what })
}
