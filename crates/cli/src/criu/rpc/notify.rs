//! Telling the caller how far a run is: a response of the type NOTIFY with the moment's name, which he acknowledges by a
//! request of that type. Anything else from him ends the run.

use super::wire::{Peer, Received};
use cryonaut_engine::{Answer, Event, Hook, Moment};
use cryonaut_image::rpc::{CriuNotify, CriuReqType, CriuResp};
use std::sync::Arc;

/// A hook that tells him of every moment.
pub fn hook(peer: Arc<Peer>) -> Hook {
    Hook::new(move |event| tell(&peer, event))
}

fn tell(peer: &Peer, event: &Event<'_>) -> Result<Answer, String> {
    let has_pid = matches!(event.moment, Moment::SetupNamespaces | Moment::PostRestore);
    let notify = CriuNotify { script: Some(event.moment.name().into()), pid: has_pid.then_some(event.root_pid) };
    let response =
        CriuResp { r#type: CriuReqType::Notify as i32, success: true, notify: Some(notify), ..CriuResp::default() };
    peer.send(&response, event.terminal).map_err(|error| format!("{error:#}"))?;
    let request = match peer.receive().map_err(|error| format!("{error:#}"))? {
        Received::Request(request) => request,
        Received::Malformed(problem) => return Err(problem),
        Received::End => return Err("the caller has gone away".into()),
    };
    if request.r#type() != CriuReqType::Notify {
        return Err(format!("the caller answers with a request of the type {}", request.r#type().as_str_name()));
    }
    if !request.notify_success() {
        return Err("the caller does not agree".into());
    }
    let external = match event.moment {
        Moment::QueryExtFiles => request.opts.map(|opts| opts.external).unwrap_or_default(),
        _ => Vec::new(),
    };
    Ok(Answer { external })
}
