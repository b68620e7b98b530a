package jailer

const sysSetns = 268
