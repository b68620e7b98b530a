package pack

// What package syscall has no names for.
const (
	sysFstatat = 262 // newfstatat
	sysSyncfs  = 306
)
