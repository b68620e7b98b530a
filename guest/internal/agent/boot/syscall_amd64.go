package boot

// sysFinitModule is missing from package syscall, which was frozen before it (finit_module(2), Linux 3.8).
const sysFinitModule = 313

// sysSyncfs is missing from it, too (syncfs(2), Linux 2.6.39).
const sysSyncfs = 306
