package cli

import (
	"context"
	"time"
)

// callTimeout bounds one answer of the node. Calls that ask the whole mesh
// have their own, shorter limits inside the node.
const callTimeout = 30 * time.Second

// callContext is for calls that give one answer; streams live as long as the
// command.
func (a *App) callContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, callTimeout)
}
