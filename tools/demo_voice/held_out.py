"""A hundred ordinary sentences that are in no training text; nor is a word in capitals, or one that begins with it."""

from __future__ import annotations

import re

_MARKED = """\
She left her UMBRELLA on the bus and got wet on the way home.
The KETTLE is on the stove and the cups are in the cupboard.
My dentist told me to eat fewer sweets and drink more water.
There is a new BAKERY around the corner that sells fresh bread.
He wrapped a warm SCARF around his neck before he went outside.
The children made a big PUMPKIN pie for their grandmother.
A PIGEON sat on the roof and looked down at the street.
Would you like a cheese SANDWICH or a bowl of soup?
We had dinner on the BALCONY and watched the sun go down.
The nurse gave him a BLANKET because he was cold.
I cannot find my WALLET anywhere in the house.
The GARDENER planted three rows of TULIPs along the path.
They carried a LANTERN through the dark tunnel.
Please put the KEYBOARD and the mouse back on the desk.
The farmer loaded the hay onto his TRACTOR.
She wore a yellow RAINCOAT and a pair of old boots.
Our NEIGHBORHOOD is very quiet on Sunday mornings.
He forgot to bring his PASSPORT to the airport.
The SQUIRREL ran up the tree with a nut in its mouth.
Can you pass me the KETCHUP and the salt, please?
The AMBULANCE arrived only five minutes after the call.
We painted the FENCE white and the door green.
My cousin plays the TRUMPET in the school band.
The CUPCAKEs were gone before the party started.
There is a spider in the BATHTUB again.
The MECHANIC said that the car needs new brakes.
You should wear SUNGLASSES when you drive in the evening.
The waiter brought us a large PIZZA and two glasses of juice.
I have a HEADACHE, so I am going to bed early.
The SNOWMAN in the yard melted after two warm days.
He bought a ticket for the evening CONCERT.
She keeps a HAMSTER in a cage next to her bed.
The ELEVATOR is broken, so we have to take the stairs.
Grandfather told us a story about a DRAGON and a brave boy.
The PLUMBER fixed the pipe under the kitchen sink.
We got lost in the SUPERMARKET and asked a man for help.
The BANANAs on the table are still green.
A thick fog covered the HIGHWAY this morning.
Her DAUGHTER wants to become an astronaut one day.
He poured some milk over his CEREAL and sat down.
The puppy hid behind the COUCH when it heard the thunder.
They rented a small COTTAGE near the lake for a week.
The LIBRARIAN helped me find a book about whales.
I need a HAMMER and some nails to hang this picture.
The TOURISTs took pictures of the old castle.
The CARPET in the hall is soft and very clean.
You can buy STAMPs at the post office across the street.
The pilot landed the HELICOPTER on top of the hospital.
My uncle grows TOMATOes and beans in his garden.
She put the flowers in a blue VASE by the window.
The circus has two CLOWNs and a dancing bear.
We ate PANCAKEs with honey for breakfast.
The referee blew his WHISTLE and stopped the game.
It took us three hours to climb to the top of the VOLCANO.
He cut the paper with a pair of SCISSORS.
The weather will be cold tomorrow, so please take a coat with you.
She opened the window and listened to the sound of the rain.
The old bridge was built more than two hundred years ago.
Can you tell me where the nearest train station is?
My brother works as an engineer in a small company near the river.
The children were playing in the park when the storm began.
He could not remember the name of the place we visited last summer.
Please call me back as soon as you have finished your work.
The museum is closed on Mondays, but the library is open every day.
A good teacher explains difficult things in a simple way.
They walked slowly through the forest and talked about the future.
The doctor said that he should sleep more and work less.
I bought a new pair of shoes, but they are too small for me.
The train was late because of the heavy snow in the mountains.
Her father taught her how to ride a horse when she was six.
We will meet in front of the school at half past seven.
He put the letter in his pocket and forgot about it.
The price of oil has gone up again this month.
The students were asked to read the next chapter at home.
The ship left the harbor early in the morning.
She wants to learn how to play the piano.
I think we should paint the wall yellow.
The police found the stolen money behind the house.
You can leave your bags at the hotel until noon.
Nobody knows what will happen after the election.
I am looking forward to seeing you again next week.
It is too late to change your mind now.
The answer to this question is not as simple as it seems.
We have known each other since we were children.
Turn left at the second light and then go straight ahead.
The meeting has been moved to Thursday afternoon.
Do you know how much this chair costs?
They are going to build a new road through the valley.
The dog is sleeping under the table.
I would rather stay at home and read a good book.
Could you please speak a little more slowly?
Most people in this town work in the same factory.
The sun was shining, but the wind was still cold.
He has been learning English for three years.
What time does the shop close on Saturdays?
The little girl smiled and waved her hand.
I do not understand why he is so angry with us.
She has lived in this city all her life.
Every morning he walks to work along the river.
Thank you very much for your help."""

UNSEEN = sorted({word.lower() for word in re.findall(r"[A-Z]{3,}", _MARKED)})
"""What no word of the training text begins with."""
SENTENCES = [re.sub(r"[A-Z]{3,}", lambda word: word[0].lower(), line) for line in _MARKED.splitlines()]
