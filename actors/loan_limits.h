// loan_limits.h - how much device memory clients may have. The lease manager counts what they hold;
// an executor counts what they have open, which is also what they gave back and did not close.

#ifndef ACTORS_LOAN_LIMITS_H
#define ACTORS_LOAN_LIMITS_H

#include <stdint.h>

#define LOANS_HELD_MAX 48u                                // of all devices
#define LOANS_HELD_BY_USER_MAX 8u                         // of one uid
#define LOANS_HELD_BY_USER_BYTES_MAX (UINT64_C(1) << 30)  // and their bytes

#define LOANS_OPEN_MAX 64u  // of one device
#define LOANS_OPEN_BY_USER_MAX (2 * LOANS_HELD_BY_USER_MAX)
#define LOANS_OPEN_BY_USER_BYTES_MAX (2 * LOANS_HELD_BY_USER_BYTES_MAX)

_Static_assert(LOANS_OPEN_MAX > LOANS_HELD_MAX, "an executor has an entry for all that are held");

#endif  // ACTORS_LOAN_LIMITS_H
