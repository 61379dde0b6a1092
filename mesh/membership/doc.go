// Package membership decides who belongs to a mesh. It is pure: no network, no
// clock of its own, no goroutine; the caller passes the time in and stores what
// Ledger asks it to store.
//
//   - A mesh is an Ed25519 root key; its id is 10 hex digits of the key's hash.
//   - The root signs issuer certificates for nodes of tier own; an issuer signs
//     member certificates with its identity key. A Chain holds both and is all
//     a peer needs to prove itself to a peer that knows the root key.
//   - A Ticket is the string that lets one machine redeem a certificate at the
//     issuer that made it. Ledger is the issuer's record of its tickets.
//
// Absolute times (tickets, certificates) are judged with Leeway either way, so
// clocks may differ by some minutes. Everything here is safe for concurrent
// use only where it says so; values are plain data.
//
// The byte layouts are proto/beammesh/peer/v1/membership.proto, in words
// docs/protocols/ticket.md.
package membership
