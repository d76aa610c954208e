/*-------------------------------------------------------------------------
 *
 * injection.h
 *	  Places where a test may end the process.
 *
 * They exist only in a library that was built with "make INJECTION=1"; in
 * any other one HS_INJECTION_POINT() is nothing.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_INJECTION_H
#define HS_INJECTION_H

#ifdef HS_INJECTION
extern void hs_injection_point(const char *name);

#define HS_INJECTION_POINT(name) hs_injection_point(name)
#else
#define HS_INJECTION_POINT(name) ((void) 0)
#endif

#endif							/* HS_INJECTION_H */
