'use strict'

// Students' progress from the view bench_progress to their contacts: one PATCH a
// contact for those who differ from what was sent last, which diy.sent knows.

const { start } = require('./common')

const AT_ONCE = 6

async function send(hubspot, db, student) {
  await hubspot.crm.contacts.basicApi.update(student.email, { properties: student.properties }, 'email')
  await db.query({
    name: 'sent',
    text: 'UPDATE diy.sent SET properties = $2 WHERE user_id = $1',
    values: [student.user_id, student.properties]
  })
}

async function push(hubspot, db) {
  const { rows } = await db.query(`
    SELECT p.user_id, p.email, p.properties FROM bench_progress p JOIN diy.sent s USING (user_id)
    WHERE s.properties IS DISTINCT FROM p.properties`)
  const students = rows.values()
  const worker = async () => {
    for (const student of students) await send(hubspot, db, student)
  }
  await Promise.all(Array.from({ length: AT_ONCE }, worker))
  return rows.length
}

start(push)
