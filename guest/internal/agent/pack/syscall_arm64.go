package pack

// What package syscall has no names for.
const (
	sysFstatat = 79
	sysSyncfs  = 267
)
