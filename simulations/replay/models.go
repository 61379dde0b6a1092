package replay

import "time"

// Models are the costs that a journal shows. Each is the time that a machine
// needs when it does nothing else; what runs at once shares its processors, see
// host.
type Models struct {
	// Link is one way of a message between two nodes, with the work at both ends.
	Link Delay `json:"link_ns"`
	// Award is the same of awards and their answers, which go to the disk first.
	Award Delay `json:"award_ns"`
	// Local is a message within a node.
	Local Delay `json:"local_ns"`
	// StartWarm is one container start where the image is; StartCold where it has
	// to be pulled first.
	StartWarm Delay `json:"start_warm_ns"`
	StartCold Delay `json:"start_cold_ns"`
	// Dispatch is from handing a call to a container to its begin.
	Dispatch Delay `json:"dispatch_ns"`
	// Stop is from letting a container go to its resources being free.
	Stop Delay `json:"stop_ns"`
	// Alike is how often of a million a message between two nodes has the luck of
	// its offer instead of its own. What slows one message, such as a process that
	// keeps the processors, slows those that are sent with it.
	Alike int `json:"alike_ppm"`
	// Crowd is how machines slow down.
	Crowd   Crowd   `json:"crowd"`
	Samples Samples `json:"samples"`
}

// Samples says on how many measurements each model stands.
type Samples struct {
	Link      int `json:"link"`
	Award     int `json:"award"`
	Local     int `json:"local"`
	StartWarm int `json:"start_warm"`
	StartCold int `json:"start_cold"`
	Dispatch  int `json:"dispatch"`
	Stop      int `json:"stop"`
}

// Defaults stand in for what a recording does not show; from measurements of a
// mesh on one machine.
var Defaults = Models{
	Link: Always(300 * time.Microsecond), Award: Always(500 * time.Microsecond), Local: Always(50 * time.Microsecond),
	StartWarm: Always(90 * time.Millisecond), StartCold: Always(1500 * time.Millisecond),
	Dispatch: Always(500 * time.Microsecond), Stop: Always(50 * time.Millisecond), Crowd: Crowd{Processors: 2, StartLoad: 1, Power: 2},
}
