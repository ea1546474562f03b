//! A DNS server with a handful of records, over UDP.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::net::UdpSocket;

type Records = Mutex<HashMap<(Name, RecordType), Vec<RData>>>;

/// Answers until it is dropped.
pub struct DnsServer {
    addr: SocketAddr,
    records: Arc<Records>,
    asked: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl DnsServer {
    /// A server without records on a free port.
    pub async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        let (records, asked) = (Arc::new(Records::default()), Arc::new(AtomicUsize::new(0)));
        let task = tokio::spawn(serve(socket, records.clone(), asked.clone()));
        Self { addr, records, asked, task }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Questions so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Replaces the addresses of a host.
    pub fn set_a(&self, host: &str, addresses: &[&str]) {
        let data = addresses.iter().map(|ip| RData::A(ip.parse::<Ipv4Addr>().unwrap().into())).collect();
        self.set(host, RecordType::A, data);
    }

    /// Replaces the targets of a service.
    pub fn set_srv(&self, service: &str, targets: &[(&str, u16)]) {
        let record = |(host, port): &(&str, u16)| RData::SRV(SRV::new(0, 0, *port, Name::from_ascii(host).unwrap()));
        self.set(service, RecordType::SRV, targets.iter().map(record).collect());
    }

    fn set(&self, name: &str, kind: RecordType, data: Vec<RData>) {
        self.records.lock().unwrap().insert((Name::from_ascii(name).unwrap(), kind), data);
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(socket: UdpSocket, records: Arc<Records>, asked: Arc<AtomicUsize>) {
    let mut buffer = [0; 4096];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        let Ok(request) = Message::from_vec(&buffer[..length]) else { continue };
        asked.fetch_add(1, Ordering::SeqCst);
        let mut answer = Message::response(request.metadata.id, OpCode::Query);
        answer.metadata.recursion_available = true;
        for query in &request.queries {
            answer.add_query(query.clone());
            let key = (query.name().to_lowercase(), query.query_type());
            match records.lock().unwrap().get(&key) {
                Some(data) => {
                    for data in data {
                        answer.add_answer(Record::from_rdata(query.name().clone(), 3600, data.clone()));
                    }
                }
                None => answer.metadata.response_code = ResponseCode::NXDomain,
            }
        }
        let _ = socket.send_to(&answer.to_vec().unwrap(), from).await;
    }
}
