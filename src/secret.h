/*-------------------------------------------------------------------------
 *
 * secret.h
 *	  Where the access token comes from.
 *
 *-------------------------------------------------------------------------
 */
#ifndef HS_SECRET_H
#define HS_SECRET_H

extern char *hs_secret_read_token(void);
extern void hs_secret_wipe(char *token);

#endif							/* HS_SECRET_H */
