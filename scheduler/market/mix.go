package market

import "github.com/beammesh/beammesh/scheduler"

// SetMix tells a machine what the mesh has been asked for lately: owners rank by
// the fragmentation that a placement leaves for it, workers choose the device of
// a share by it. Both do without until the first one comes.
type SetMix struct{ Shapes []scheduler.Weighted }

func (SetMix) ownerEvent()  {}
func (SetMix) workerEvent() {}

func (o *Owner) setMix(e SetMix) {
	if o.cfg.Packing == nil {
		o.cfg.Packing = new(scheduler.Packing)
		o.view.SetPacking(o.cfg.Packing)
	}
	o.cfg.Packing.SetMix(scheduler.NewMix(e.Shapes, scheduler.MaxShapes))
}

func (w *Worker) setMix(e SetMix) {
	if w.cfg.Packing == nil {
		w.cfg.Packing = new(scheduler.Packing)
	}
	w.cfg.Packing.SetMix(scheduler.NewMix(e.Shapes, scheduler.MaxShapes))
}
