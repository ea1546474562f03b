//! An actix-web server that embeds a node: any instance answers for any key, by asking the one that owns it.
//!
//! ```text
//! cargo run --example embed_actix_web -- a 9001 7001 &
//! cargo run --example embed_actix_web -- b 9002 7002 127.0.0.1:7001 &
//! curl http://127.0.0.1:9001/items/apple     # "apple lives on b", whichever instance you ask
//! ```

use actix_web::{App, HttpResponse, HttpServer, Responder, get, web};
use annulus::config::{Config, RingConfig};
use annulus::{Node, Operation, key_hash};

/// Answers if this instance owns the key, or else asks the owner.
#[get("/items/{key}")]
async fn item(node: web::Data<Node>, http: web::Data<reqwest::Client>, key: web::Path<String>) -> impl Responder {
    let owners = match node.ring("items").get(key_hash(key.as_str()), Operation::Write) {
        Ok(owners) => owners,
        Err(error) => return HttpResponse::ServiceUnavailable().body(error.to_string()),
    };
    let Some(owner) = owners.instances().next() else { return HttpResponse::ServiceUnavailable().finish() };
    if &*owner.id == node.id() {
        return HttpResponse::Ok().body(format!("{key} lives on {}\n", owner.id));
    }
    let asked = async { http.get(format!("http://{}/items/{key}", owner.addr)).send().await?.text().await }.await;
    match asked {
        Ok(answer) => HttpResponse::Ok().body(answer),
        Err(error) => HttpResponse::BadGateway().body(error.to_string()),
    }
}

#[actix_web::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [id, http_port, gossip_port, seeds @ ..] = &arguments[..] else {
        return Err("usage: embed_actix_web ID HTTP_PORT GOSSIP_PORT [SEED…]".into());
    };
    let address = format!("127.0.0.1:{http_port}");

    let config = Config::builder(id)
        .bind("127.0.0.1".parse()?, gossip_port.parse()?)
        .join_members(seeds)
        .address(&address)
        .ring_with(RingConfig { replication_factor: 1, ..RingConfig::named("items") })
        .build()?;
    let node = Node::builder(id).config(config).start().await?;

    let shared = web::Data::new(node.clone());
    let client = web::Data::new(reqwest::Client::new());
    let app = move || App::new().app_data(shared.clone()).app_data(client.clone()).service(item);
    HttpServer::new(app).workers(2).bind(&address)?.run().await?;
    node.leave().await; // Ctrl-C ended the server: sign off from the ring.
    Ok(())
}
