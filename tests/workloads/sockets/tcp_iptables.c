// flags: --tcp-established --network-lock iptables
// peer: no, the same connections are tried with its nftables
// differs: descriptor socket.unread, what was under way may have arrived
// differs: descriptor socket.unsent, what was under way may have arrived
// differs: descriptor socket.diag.received, what was under way may have arrived
// differs: descriptor socket.diag.sent, what was under way may have arrived
// differs: descriptor socket.diag.memory.on_its_way, what was under way may have arrived
// differs: descriptor socket.diag.memory.queued, what was under way may have arrived
// differs: descriptor socket.diag.tcp.notsent_bytes, what was under way may have arrived
// differs: descriptor socket.diag.timer, by what is under way
// differs: descriptor socket.IPPROTO_TCP.10, grows with what arrives
/* The connections of tcp_connections.c, while rules of iptables drop their packets. */
#include "tcp_connections.c"
