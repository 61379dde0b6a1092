package scheduler

import "time"

// Source says how a node came into a view.
type Source string

// The sources; the node's shell states one with each advert.
const (
	SourceSelf   Source = "self"
	SourceHello  Source = "hello"  // handed over when a peer connected
	SourceGossip Source = "gossip" // heard on an advert topic
	SourceDHT    Source = "dht"    // met on the way through the DHT
	SourceLookup Source = "lookup" // named by the DHT for a class, then asked
	SourceReply  Source = "reply"  // came with an answer
)

// Candidate is a node that was considered for a demand, with its score.
type Candidate struct {
	Node   NodeID
	Name   string
	Class  string
	Source Source // how it was first found
	Score  Score
}

// NodeRefusal is a node with its reasons.
type NodeRefusal struct {
	Node    NodeID
	Name    string
	Source  Source
	Reasons []Refusal
}

// Moment is one line of an explanation's history.
type Moment struct {
	At   time.Duration
	Text string
}
