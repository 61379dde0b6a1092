// Package client finds a node and talks to it: where the API is (flags,
// environment, ~/.beam/config.ini), which token to show, and one connection
// over which every service is called.
//
//	s, err := client.Resolve(client.Source{Getenv: os.Getenv})
//	c := client.New(s)
//	tasks, err := c.Node.ListTasks(ctx, connect.NewRequest(&beammeshv1.ListTasksRequest{}))
//	if err != nil {
//		return c.Fault(err) // *fault.Error that says which node was asked
//	}
//
// A Client is safe for concurrent use. It keeps no state but its connections.
package client
