// patience.h - how much slower the program is than it was built to be.
//
// Under ThreadSanitizer everything takes ten times as long, and what is only slow must not be taken
// for dead: times after which somebody is given up are multiplied by this.

#ifndef BASE_PATIENCE_H
#define BASE_PATIENCE_H

#ifdef __SANITIZE_THREAD__
#define PATIENCE 10
#else
#define PATIENCE 1
#endif

#endif  // BASE_PATIENCE_H
