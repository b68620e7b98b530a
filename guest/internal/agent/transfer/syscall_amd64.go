package transfer

// sysMemfdCreate is missing in package syscall.
const sysMemfdCreate = 319
