package jailer

const sysSetns = 308
