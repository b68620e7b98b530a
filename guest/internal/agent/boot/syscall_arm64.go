package boot

// sysFinitModule is missing from package syscall, which was frozen before it (finit_module(2), Linux 3.8).
const sysFinitModule = 273
