// Package wanlink is the wide-area network between regions whose parts are processes of their own: a relay of TCP
// connections that delays, loses and cuts what it carries as package wan does, and the control of its links over HTTP.
//
// # Relay
//
// Each region is a network in which the relay has an address. There it listens in the place of every part of the other
// regions, at that part's own port, and carries what connects over the link between the two regions to the part itself:
// so names lead to the relay in every region but the part's own, and ports must differ between parts. A door is an
// address outside of all regions at which a part is reached without a delay, as from within its region.
//
// What a connection through the relay promises, beside what package wan does:
//
//   - A connection to the relay opens at once, and its bytes wait there for the round trip that opening the way to the
//     part takes. Over a cut link they wait until it is healed, or the connection ends after Config.DialTimeout.
//   - A part that refuses, or is not there, is seen as a connection that ends.
//   - The end of one direction ends the other as well: no protocol of ours closes half a connection.
//   - The relay reads nothing: TLS goes through it from end to end.
//
// # Control
//
// All answers but errors are the links after the request, as JSON: an object whose "links" hold one object for each
// direction, with "from", "to", "delay_ms" (of this direction), "loss" (the probability of one packet), "cut" and
// "sent_bytes". Times are in milliseconds. Errors are 400, 403, 404 or 405 with a line of text.
//
//	GET  /v1/links
//	POST /v1/cut         {"from": "us", "to": "ap"}    both ways; with "one_way": true only what "from" sends
//	POST /v1/heal        {"from": "us", "to": "ap"}    both ways, always
//	POST /v1/round-trip  {"from": "us", "to": "ap", "round_trip_ms": 150}
//	POST /v1/loss        {"from": "us", "to": "ap", "loss": 0.02}
//
// Without "to" a request is about all links of the region "from"; without both it is about every link. Where the control
// is served with TLS and an authority for clients, changes need an operator's certificate, and looking needs any.
package wanlink
