package owner

// Held counts what the owner keeps of containers: leases, and wishes for them.
func (o *Owner) Held() (leases, offers int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.leases), len(o.offers)
}
